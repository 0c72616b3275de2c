import numpy as np
import pytest
from sklearn.datasets import load_digits

from console.demo import data


@pytest.mark.parametrize(("silos", "seed"), [(5, 0), (5, 4), (1, 0), (9, 2)])
def test_every_record_goes_to_one_silo_and_one_part(silos: int, seed: int) -> None:
    parts = data.deal(silos, seed)
    pixels = np.concatenate([r.pixels for part in parts for r in (part.train, part.held_out)])
    expected = (load_digits().data / 16).astype(np.float32)
    assert len(parts) == silos
    assert np.array_equal(np.unique(pixels, axis=0), np.unique(expected, axis=0))
    assert len(pixels) == len(expected)
    assert sum(sum(part.counts()) for part in parts) == len(expected)


def test_the_deal_depends_on_the_seed_alone() -> None:
    first, again, other = data.deal(5, 7), data.deal(5, 7), data.deal(5, 8)
    assert all(np.array_equal(a.train.pixels, b.train.pixels) for a, b in zip(first, again, strict=True))
    assert [len(a.train) for a in first] != [len(b.train) for b in other]


def test_labels_are_skewed_and_no_silo_is_too_small() -> None:
    for seed in range(8):
        parts = data.deal(5, seed)
        assert min(len(part.train) + len(part.held_out) for part in parts) >= data.SMALLEST
        assert sum(count == 0 for part in parts for count in part.counts()) >= 3
        assert all(len(part.held_out) == round(data.HELD_OUT * sum(part.counts())) for part in parts)


def test_too_many_silos_are_refused_with_a_reason() -> None:
    with pytest.raises(ValueError, match="fewer silos"):
        data.deal(120, 0)


def test_names_are_distinct_dns_labels() -> None:
    names = data.names(20)
    assert len(set(names)) == 20
    assert all(name.replace("-", "").isalnum() for name in names)


def test_files_hold_what_the_task_reads(tmp_path) -> None:
    parts = data.deal(3, 1)
    data.write(parts[0], tmp_path)
    with np.load(tmp_path / "train.npz", allow_pickle=False) as found:
        assert found["pixels"].dtype == np.float32
        assert found["labels"].dtype == np.int64
        assert np.array_equal(found["pixels"], parts[0].train.pixels)
    assert len(data.together(parts)) == sum(len(part.held_out) for part in parts)
