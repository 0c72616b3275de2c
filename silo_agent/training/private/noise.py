"""The chance that privacy rests on: a ChaCha20 keystream, and Gaussian noise and coins made of it.

A pseudo-random generator made for simulations can be told from true chance, and its seed found from what it gave out;
so torch, numpy and Python's `random` have no part in this, and nothing here takes a seed. The key comes from the
system, lives in this process alone, and is never saved.

Noise in floating point is not Gaussian in its last bits, and these can give away what it was added to (Mironov 2012).
Hence two measures. Each value is the sum of four independent Gaussians, halved, so that nobody finds the state behind
it (Holohan and Braghin, arXiv 2112.05307). And the sum of value and noise is rounded to a grid some 2^32 times coarser
than the numbers it was computed in, so that its last bits say nothing.
"""

import math
import os
from collections.abc import Callable
from typing import Final

import torch
from cryptography.hazmat.primitives.ciphers import Cipher, CipherContext
from cryptography.hazmat.primitives.ciphers.algorithms import ChaCha20

from anabranch.errors import Unavailable

GRID: Final = (
    20  # the grid of noisy sums is at least 2^20 times finer than the standard deviation of the noise
)
_REKEY: Final = 2**30  # bytes of one keystream; ChaCha20 counts blocks, and would begin again after 2^38
_CHUNK: Final = 2**14  # values at a time on a CPU: what they are made of stays in its cache
_CHUNK_GPU: Final = 2**22
_ZEROS: Final = memoryview(bytes(2**20))


class Source:
    """One per process, never copied: two that went on from the same state would give the same noise."""

    def __init__(self, system: Callable[[int], bytes] = os.urandom) -> None:
        """`system`: where keys come from."""
        self._system = system
        self._stream: CipherContext | None = None
        self._owner = 0  # process id
        self._left = 0  # bytes before the next key
        self._last = b""

    def bits(self, count: int) -> torch.Tensor:
        """`count` int64 numbers, uniform over all of them. Raises Unavailable when the source is broken."""
        bits = torch.empty(count, dtype=torch.int64)
        room = bits.numpy().data.cast("B")
        for start in range(0, len(room), len(_ZEROS)):
            self._fill(room[start : start + len(_ZEROS)])
        return bits

    def normal(self, count: int, device: torch.device) -> torch.Tensor:
        """`count` float64 standard Gaussian values."""
        most = _CHUNK if device.type == "cpu" else _CHUNK_GPU
        values = torch.empty(count, dtype=torch.float64, device=device)
        for start in range(0, count, most):
            part = values[start : start + most]
            part.copy_(self._normal(len(part), device))
        return values

    def noisy(self, values: torch.Tensor, std: float) -> torch.Tensor:
        """`values` plus Gaussian noise of standard deviation `std`, above 0, in float64 on a grid."""
        grid = 2.0 ** (math.floor(math.log2(std)) - GRID)
        noise = self.normal(values.numel(), values.device).view(values.shape)
        return noise.mul_(std).add_(values).div_(grid).round_().mul_(grid)

    def chosen(self, count: int, rate: float) -> list[int]:
        """Each of `count` with probability `rate`, rounded down to a multiple of 2^-53, independently."""
        limit = math.floor(rate * 2.0**53)
        return ((self.bits(count) & (2**53 - 1)) < limit).nonzero().flatten().tolist()

    def _normal(self, count: int, device: torch.device) -> torch.Tensor:
        """Box and Muller's: of four pairs, the sum of the cosines is one value, that of the sines another."""
        half = (count + 1) // 2
        uniform = self.bits(8 * half).to(device).view(2, 4, half)
        uniform = uniform.bitwise_and_(2**53 - 1).add_(1).double().mul_(2.0**-53)  # above 0, at most 1
        radius = uniform[0].log_().mul_(-2).sqrt_()
        angle = uniform[1].mul_(2 * math.pi)
        return torch.cat([(radius * angle.cos()).sum(0), (radius * angle.sin()).sum(0)])[:count].mul_(0.5)

    def _fill(self, room: memoryview) -> None:
        size = len(room)
        if self._stream is None or self._owner != os.getpid() or self._left < size:
            # The counter starts at 0 under each key, and no key is used twice, so there is no need for a nonce.
            self._stream = Cipher(ChaCha20(self._key(), bytes(16)), mode=None).encryptor()
            self._owner, self._left = os.getpid(), _REKEY
        self._left -= size
        self._stream.update_into(_ZEROS[:size], room)
        first = bytes(room[:8])
        if first == self._last or first == room[8:16]:
            raise Unavailable("the source of noise gave the same 64 bits twice: start the process again")
        self._last = first

    def _key(self) -> bytes:
        key = self._system(32)
        if len(key) != 32 or len(set(key)) < 8:
            raise Unavailable(
                "the system's source of random bytes is broken: nothing is trained without noise"
            )
        return key
