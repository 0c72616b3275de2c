"""What revival is worth, and what it costs."""
