"""The reviver: distils what slow silos know into the head, without data (FedRevive, arXiv 2511.00655).

It is a client of the server and runs jobs' code, like a silo agent, but it has no data: what it distils on it makes.
"""
