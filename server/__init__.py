"""Aggregation of updates, and everything that must survive a crash while doing it."""
