"""Who is hidden: records, or subjects with all of theirs."""

from typing import Any

import numpy as np
import pytest

from silo_agent.training.private.units import Units, groups, units_of
from silo_agent.training.task import Garbage


class Task:
    def __init__(self, keys: Any) -> None:
        self.keys = keys

    def subjects(self, dataset: Any) -> Any:
        return self.keys


def test_records_are_their_own_units() -> None:
    units = units_of(object(), list("abc"), "example")
    assert (units.count, [list(units[i]) for i in range(3)]) == (3, [[0], [1], [2]])


@pytest.mark.parametrize(
    "keys",
    [["p", "q", "p", "r", "q", "p"], np.array([3, 1, 3, 2, 1, 3]), (b"p", b"q", b"p", b"r", b"q", b"p")],
)
def test_a_subject_has_all_of_its_records(keys: Any) -> None:
    units = units_of(Task(keys), list("abcdef"), "subject")
    assert units.count == 3
    assert [list(units[i]) for i in range(3)] == [[0, 2, 5], [1, 4], [3]]


@pytest.mark.parametrize(
    ("task", "words"),
    [
        (object(), r"needs a method subjects\(dataset\)"),
        (Task(["p", "q"]), "gave 2 keys for 3 records"),
        (Task([object(), object(), object()]), "key is a object"),
        (Task([0.0, float("nan"), float("nan")]), "key is a float"),
    ],
    ids=["none", "too few", "by identity", "nan"],
)
def test_keys_that_would_not_hide_a_subject_are_refused(task: Any, words: str) -> None:
    with pytest.raises(Garbage, match=words) as refused:
        units_of(task, list("abc"), "subject")
    assert refused.value.kind == "NoSubjects"


def test_units_stay_whole_in_memory_unless_one_is_too_large() -> None:
    units = Units(5, [[0, 1], [2], [3, 4, 5, 6], [7], [8, 9]])
    chosen = [0, 1, 2, 3, 4]
    assert list(groups(units, chosen, None)) == [[[0, 1], [2], [3, 4, 5, 6], [7], [8, 9]]]
    assert list(groups(units, chosen, 3)) == [[[0, 1], [2]], [[3, 4, 5, 6]], [[7], [8, 9]]]
    assert list(groups(units, [], 3)) == []
    assert list(groups(Units(3, None), [0, 2], 1)) == [[(0,)], [(2,)]]
