"""What revival is worth, in virtual time, on real data."""
