"""What revival is worth, on real data (docs/revival.md)."""
