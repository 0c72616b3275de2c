"""The audit log: sequencing, signing, proofs, export."""
