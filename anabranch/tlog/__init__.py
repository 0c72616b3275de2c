"""A transparency log in public formats: RFC 6962 tree, C2SP notes, checkpoints and tiles, our entries.

Pure: no clock, no disk, no randomness, no network. Whoever calls passes bytes in and gets bytes or a refusal
back, so the server that writes the log and the auditor that distrusts it run the same code.
"""
