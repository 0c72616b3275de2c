"""What revival is worth, measured."""
