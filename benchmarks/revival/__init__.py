"""What reviving costs."""
