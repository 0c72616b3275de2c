"""Arithmetic of aggregation: pure, numpy only, the same code at the server and at the auditor.

`strategies` turns a closed `buffer` into a plan, the terms of a sum; `optimizers` turns their sum, a direction, into
new parameters; `step` streams both over whole files. `packing` says which elements of a file travel, and as which
bytes, `rounding` those of their values; `feedback` is what a silo keeps of the rest. `profile` names the rules that make
the result the same bits anywhere.
"""
