"""How well the strategies learn, in virtual time, on real data: `make bench-strategies`."""
