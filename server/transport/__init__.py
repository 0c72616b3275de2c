"""The only async code of the server: who may call, bytes in, bytes out. Decisions are made behind it."""
