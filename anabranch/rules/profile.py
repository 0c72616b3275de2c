"""The numeric profile: why the same inputs give the same bits on every machine.

A published version commits to `NUMERIC_PROFILE`. Its rules:

1. On tensors only `+`, `-`, `*`, `/`, `sqrt` and comparisons, element by element: the operations IEEE 754
   rounds in exactly one way. No `exp`, no `power`: their last bits depend on the CPU.
2. One operation per numpy call, so that no compiler or library can fuse a multiply with an add.
3. No BLAS and no reduction over elements: they reorder sums by vector width. A sum over *updates* runs in
   the order the log records.
4. Tensors are read and written as float32, little-endian. Arithmetic between reading and writing is float64;
   each output element is rounded once (to nearest, ties to even) when it is stored. Subnormals are kept.
5. A scalar that needs a reduction or a transcendental function is computed once, by the server, and logged as
   a hex float. Replay takes the logged value as an input, and checks it against its own within
   `SCALAR_TOLERANCE`. Every other scalar is recomputed and must be equal.

A change of any rule, or of the order of any formula here, is a new profile name. The golden digests in
`tests/rules/test_golden.py` define this one.
"""

NUMERIC_PROFILE = "anabranch-np-1"

SCALAR_TOLERANCE = 1e-6  # relative; far wider than the last-bit differences between maths libraries
