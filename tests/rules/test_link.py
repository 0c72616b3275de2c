"""The keys of `[link]`: what they need of each other, and that terms without the newer ones are as they were."""

import json
import re
from pathlib import Path

import pytest
from pydantic import ValidationError

from anabranch.link import Link, Packing
from anabranch.terms import parse_job_file

PAGE = Path(__file__).parents[2] / "docs/link.md"
JOB = '[job]\nname = "digits"\ntask = "task.py:Digits"\n[link]\n'


@pytest.mark.parametrize(
    ("keys", "words"),
    [
        ({}, "says nothing"),
        ({"upload_chunk": 4096}, "upload_chunk: where everything is sent nothing is ranked"),
        ({"upload_density": 0.1, "upload_chunk": 4095}, "4095 is no power of two"),
        ({"upload_density": 0.1, "upload_chunk": 1 << 17}, "less than or equal to 65536"),
        ({"upload_density": 0.1, "upload_chunk": 0}, "greater than or equal to 1"),
        (
            {"download_density": 0.1, "upload_feedback": 0.9},
            "upload_feedback: an update that is sent as it is",
        ),
        ({"upload_density": 0.1, "upload_feedback": 0.0}, "greater than 0"),
        ({"upload_density": 0.1, "upload_feedback": 1.01}, "less than or equal to 1"),
        ({"download_values": "int2"}, "download_values: two magnitudes are too few for a model"),
        ({"upload_values": "int4"}, "'int8' or 'int2'"),
    ],
)
def test_what_does_not_fit_is_said(keys, words):
    with pytest.raises(ValidationError, match=words):
        Link(**keys)


@pytest.mark.parametrize("example", re.findall(r"```toml\n(.*?)```", PAGE.read_text(), re.DOTALL))
def test_the_examples_of_the_page_are_read(example):
    assert parse_job_file(JOB.replace("[link]\n", "") + example).link is not None


def test_each_stage_stands_alone():
    assert Link(upload_values="int2").upload(0, "a") == Packing(1.0, "int2")
    assert Link(upload_density=0.1, upload_chunk=4096).upload(0, "a") == Packing(0.1, "fp32", 4096)
    assert Link(upload_values="bf16", upload_feedback=1.0).upload(0, "a") == Packing(1.0, "bf16")
    assert Link(upload_density=0.1, upload_chunk=4096).download(0, "a") is None


def test_where_everything_is_sent_there_are_no_chunks():
    """As in a tier that sends whole updates, or before a density begins to fall."""
    tiers = {"fast": {"silos": ["a"], "upload_density": 1.0, "upload_values": "bf16"}}
    link = Link(upload_density=0.1, upload_chunk=4096, tiers=tiers)
    assert link.upload(0, "a") == Packing(1.0, "bf16")
    assert link.upload(0, "b") == Packing(0.1, "fp32", 4096)
    falling = Link(upload_chunk=4096, upload_decay=0.5, decay_every=10)
    assert falling.upload(9, "a") is None
    assert falling.upload(10, "a") == Packing(0.5, "fp32", 4096)


def test_a_key_that_is_not_given_is_not_in_the_terms():
    told = json.loads(parse_job_file(JOB + "upload_density = 0.5").model_dump_json())["link"]
    assert sorted(told) == ["download_density", "download_values", "upload_density", "upload_values"]
    told = json.loads(parse_job_file(JOB + "upload_density = 0.5\nupload_feedback = 0.95").model_dump_json())[
        "link"
    ]
    assert told["upload_feedback"] == 0.95


@pytest.mark.parametrize(
    ("packing", "tensors", "most"),
    [
        (Packing(1 / 64, "int2", 4096), [4096], 64),
        (Packing(1 / 64, "int2", 4096), [2 * 4096 + 640], 138),
        (Packing(1 / 64, "int2", 4096), [10, 0, 1, 4096], 1 + 0 + 1 + 64),  # each tensor has a say
        (Packing(1e-9, "int2", 8), [17], 3),
        (Packing(1 / 64, "int2"), [10, 0, 1, 4096], 64),
    ],
)
def test_how_many_may_travel(packing, tensors, most):
    assert packing.most(tensors) == most
