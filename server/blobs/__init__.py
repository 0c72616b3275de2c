"""Content-addressed storage of model files, deltas and signed statements."""
