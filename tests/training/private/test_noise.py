"""The source of chance: it is what it says, it is never the same twice, and there is nothing without it."""

import copy
import os

import numpy as np
import pytest
import torch
from scipy import stats

from anabranch.errors import Unavailable
from silo_agent.training.private.noise import GRID, Source

CPU = torch.device("cpu")
# Of a test that is right: one in a million runs fails.
RARE = 1e-6


def fixed(seed: int) -> Source:
    """As the system would give keys, if it always gave the same ones."""
    return Source(np.random.default_rng(seed).bytes)


def test_noise_is_gaussian() -> None:
    values = Source().normal(400_000, CPU).numpy()
    assert stats.kstest(values, "norm").pvalue > RARE
    assert abs(values.mean()) < 5 / np.sqrt(len(values))
    assert abs(values.var() - 1) < 5 * np.sqrt(2 / len(values))
    assert abs(stats.skew(values)) < 5 * np.sqrt(6 / len(values))
    assert abs(stats.kurtosis(values)) < 5 * np.sqrt(24 / len(values))
    assert (np.abs(values) > 4).sum() == pytest.approx(400_000 * 6.334e-5, abs=30)


@pytest.mark.parametrize("lag", [1, 2, 8, 2**13, 2**14, 2**15])
def test_values_say_nothing_about_each_other(lag: int) -> None:
    """Also not those that are made of the same four pairs: half a chunk apart."""
    values = Source().normal(2**18, CPU).numpy()
    one, other = values[:-lag], values[lag:]
    for f, g in ((one, other), (one**2, other**2), (np.abs(one), other)):
        assert abs(np.corrcoef(f, g)[0, 1]) < 5 / np.sqrt(len(f))


def test_no_64_bits_come_twice() -> None:
    source = Source()
    bits = torch.cat([source.bits(300_001), source.bits(300_000), Source().bits(300_000)])
    assert len(torch.unique(bits)) == len(bits)
    ones = np.unpackbits(bits.numpy().view(np.uint8)).mean()
    assert abs(ones - 0.5) < 5 * 0.5 / np.sqrt(64 * len(bits))


def test_a_new_key_in_time(monkeypatch: pytest.MonkeyPatch) -> None:
    keys: list[bytes] = []

    def system(size: int) -> bytes:
        keys.append(os.urandom(size))
        return keys[-1]

    monkeypatch.setattr("silo_agent.training.private.noise._REKEY", 2**21)
    source = Source(system)
    bits = source.bits(2**20)  # 8 MiB
    assert len(set(keys)) == len(keys) == 4
    assert len(torch.unique(bits)) == len(bits)


def test_a_fork_has_chance_of_its_own() -> None:
    source = Source()
    source.bits(8)
    reader, writer = os.pipe()
    if (child := os.fork()) == 0:
        try:
            os.write(writer, source.bits(8).numpy().tobytes())
        finally:
            os._exit(0)
    os.waitpid(child, 0)
    there = np.frombuffer(os.read(reader, 64), np.int64).tolist()
    os.close(reader)
    os.close(writer)
    here = source.bits(64).tolist()
    assert len(there) == 8
    assert not set(there) & set(here)


def test_a_source_is_not_copied() -> None:
    source = Source()
    source.bits(1)
    with pytest.raises(TypeError):
        copy.deepcopy(source)


def test_torchs_seed_has_no_part_in_it() -> None:
    drawn = []
    for _ in range(2):
        torch.manual_seed(1)
        drawn.append(Source().normal(4, CPU).tolist() + Source().chosen(1000, 0.5))
    assert drawn[0] != drawn[1]


@pytest.mark.parametrize("key", [bytes(32), b"short", b"ab" * 16])
def test_without_a_key_there_is_nothing(key: bytes) -> None:
    for draw in (lambda s: s.bits(1), lambda s: s.noisy(torch.zeros(1), 1.0), lambda s: s.chosen(1, 0.5)):
        with pytest.raises(Unavailable, match="source of random bytes"):
            draw(Source(lambda size: key))


def test_an_error_of_the_system_is_not_swallowed() -> None:
    def system(size: int) -> bytes:
        raise OSError("no entropy")

    with pytest.raises(OSError, match="no entropy"):
        Source(system).noisy(torch.zeros(3), 1.0)


def test_a_stream_that_stands_still_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    class Stuck:
        def update_into(self, data: bytes, room: memoryview) -> None:
            room[:] = b"\x07" * len(data)

    class Broken:
        def __init__(self, *_: object, **__: object) -> None: ...
        def encryptor(self) -> Stuck:
            return Stuck()

    monkeypatch.setattr("silo_agent.training.private.noise.Cipher", Broken)
    with pytest.raises(Unavailable, match="twice"):
        Source().noisy(torch.zeros(3), 1.0)


@pytest.mark.parametrize("std", [3e-4, 0.7, 1.0, 12.5])
def test_noisy_values_lie_on_a_grid_far_below_the_noise(std: float) -> None:
    values = torch.full((50_000,), 1 / 3)
    noisy = Source().noisy(values, std)
    grid = 2.0 ** (np.floor(np.log2(std)) - GRID)
    assert torch.equal(noisy, (noisy / grid).round() * grid)
    assert noisy.dtype == torch.float64
    scaled = ((noisy - values.double()) / std).numpy()
    assert stats.kstest(scaled, "norm").pvalue > RARE


def test_the_same_keys_give_the_same_noise() -> None:
    """What other tests here build on."""
    one, other = (fixed(3).noisy(torch.zeros(100), 1.0) for _ in range(2))
    assert torch.equal(one, other)
    assert not torch.equal(one, fixed(4).noisy(torch.zeros(100), 1.0))


@pytest.mark.parametrize("std", [0.0, -1.0, float("nan"), float("inf")])
def test_there_is_no_going_without(std: float) -> None:
    with pytest.raises((ValueError, OverflowError)):
        Source().noisy(torch.zeros(3), std)


def test_shapes_are_kept() -> None:
    assert Source().noisy(torch.zeros(2, 3, 5), 1.0).shape == (2, 3, 5)
    assert Source().noisy(torch.zeros(()), 1.0).shape == ()
    assert Source().normal(0, CPU).shape == (0,)


@pytest.mark.parametrize("rate", [0.003, 0.25, 0.9])
def test_each_unit_comes_by_its_own_coin(rate: float) -> None:
    source, units, times = Source(), 200, 3000
    seen = np.zeros((times, units))
    for row in seen:
        row[source.chosen(units, rate)] = 1
    sizes = seen.sum(1)
    # The sizes of batches vary as a sum of independent coins does: a shuffled epoch's would not vary at all.
    assert abs(sizes.mean() - units * rate) < 5 * np.sqrt(units * rate * (1 - rate) / times)
    assert sizes.var() == pytest.approx(units * rate * (1 - rate), rel=0.2)
    of_each = seen.mean(0)
    assert np.abs(of_each - rate).max() < 6 * np.sqrt(rate * (1 - rate) / times)
    # Who was in the last step says nothing about who is in this one.
    assert abs(np.corrcoef(seen[:-1].ravel(), seen[1:].ravel())[0, 1]) < 5 / np.sqrt(seen.size)


def test_rates_at_the_ends() -> None:
    assert Source().chosen(50, 1.0) == list(range(50))
    assert Source().chosen(50, 2.0**-60) == []
    assert Source().chosen(0, 0.5) == []
