"""What this silo's data sets may reveal, counted and kept here: the accountant, the ledger, and what follows from them.

The silo enforces it. The server hears how much noise there was and is believed in nothing.
"""
