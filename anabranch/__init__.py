"""The contract: what two ends of a federation must agree on, and nothing else."""

__version__ = "0.1.0"
