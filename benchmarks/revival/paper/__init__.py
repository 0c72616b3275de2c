"""FedRevive as it was published, at its own scale."""
