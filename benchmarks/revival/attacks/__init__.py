"""Malicious silos, with revival and without."""
