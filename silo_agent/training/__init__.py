"""The training process and what starts it. The process runs code of strangers: no keys, no network, one channel.

`archive`, `channel`, `isolation`, `landlock` and `launcher` are the daemon's side and never import torch.
"""
