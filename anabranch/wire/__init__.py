"""What travels: encodings, limits, statements, identities. Both ends run this code."""
