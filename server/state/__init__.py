"""Durable state: tables, and the one writer that changes them."""
