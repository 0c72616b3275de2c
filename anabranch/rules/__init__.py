"""Arithmetic of aggregation: pure, numpy only, the same code at the server and at the auditor.

`strategies` turns buffered updates into coefficients, `optimizers` turns a direction into new parameters,
`step` streams both over whole files. `profile` names the rules that make the result the same bits anywhere.
"""
