"""Which form a file has on its way: schedules of densities, tiers of silos, and job files that make no sense."""

import math
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from anabranch.errors import Refused
from anabranch.link import LEAST, Link, Packing
from anabranch.terms import JobFile, JobTerms, parse_job_file, parse_terms

JOB = '[job]\nname = "a"\ntask = "task.py:A"\n'
TIERED = """
[link]
download_density = 0.5
upload_density = 0.25
upload_values = "int8"
download_decay = 0.5
upload_decay = 0.75
decay_every = 10
[link.tiers.slow]
silos = ["clinic-b", "clinic-c"]
download_density = 0.125
[link.tiers.near]
silos = ["clinic-d"]
upload_density = 1.0
upload_values = "fp32"
"""
DENSITY = st.floats(LEAST, 1, exclude_min=True)


def link(text: str) -> Link:
    found = parse_job_file(JOB + text).link
    assert found is not None
    return found


@given(
    density=DENSITY,
    decay=st.floats(2.0**-30, 1, exclude_max=True),
    every=st.integers(1, 10**6),
    version=st.one_of(st.integers(0, 300), st.integers(0, 10**6)),
)
def test_densities_fall_as_flasc_says(density: float, decay: float, every: int, version: int) -> None:
    """d = d0 * decay^floor(t / f), and never below one entry."""
    found = Link(upload_density=density, upload_decay=decay, decay_every=every).upload(version, "any")
    times = version // every
    if found is None:
        assert (density, times) == (1, 0)
        return
    exact = float(Fraction(density) * Fraction(decay) ** times) if times < 300 else density * decay**times
    # The relative error of a power grows with its exponent: 10**6 * 2**-53 here.
    assert found.density == pytest.approx(max(exact, LEAST), rel=1e-9, abs=0)
    assert LEAST <= found.density <= max(density, LEAST)


@given(density=DENSITY, decay=st.floats(0.01, 0.99), every=st.integers(1, 100), version=st.integers(0, 10**6))
def test_a_density_holds_for_so_many_versions_and_never_rises(
    density: float, decay: float, every: int, version: int
) -> None:
    found = Link(download_density=density, download_decay=decay, decay_every=every)
    first = version // every * every
    held = {found.download(number, "any") for number in (first, version, first + every - 1)}
    assert len(held) == 1
    (now,), later = held, found.download(first + every, "any")
    assert later is not None
    assert later.density <= (now.density if now else 1.0)


@given(DENSITY, st.integers(0, 2**38))
def test_one_entry_is_always_kept(density: float, elements: int) -> None:
    kept = Packing(density, "fp32").kept(elements)
    assert kept == max(math.floor(density * elements), 1 if elements else 0) <= elements


def test_powers_are_multiplied_alike_everywhere() -> None:
    """Their last bits are in logs: pinned, since no library's power may decide them."""
    found = Link(download_density=0.3, download_decay=0.9, decay_every=1)
    told = [found.download(version, "any") for version in (0, 1, 2, 7, 100)]
    assert [one.density.hex() for one in told if one] == [
        "0x1.3333333333333p-2",
        "0x1.147ae147ae148p-2",
        "0x1.f1a9fbe76c8b4p-3",
        "0x1.25dd98f7de1dap-3",
        "0x1.0b603427f8c14p-17",
    ]


def test_a_tier_has_what_it_says_and_else_what_the_link_says() -> None:
    found = link(TIERED)
    assert [found.tier(silo) for silo in ("clinic-a", "clinic-b", "clinic-c", "clinic-d")] == [
        "",
        "slow",
        "slow",
        "near",
    ]
    assert found.download(0, "clinic-a") == Packing(0.5, "fp32") == found.download(9, "clinic-d")
    assert found.download(20, "clinic-b") == Packing(0.125 / 4, "fp32")
    assert found.upload(10, "clinic-c") == Packing(0.25 * 0.75, "int8") == found.upload(10, "elsewhere")
    assert found.upload(0, "clinic-d") is None
    assert found.upload(10, "clinic-d") == Packing(0.75, "fp32")
    assert found.views(10) == {
        "": Packing(0.25, "fp32"),
        "slow": Packing(0.0625, "fp32"),
        "near": Packing(0.25, "fp32"),
    }
    assert sorted(found.densities) == [0.125, 0.25, 0.5, 1.0]


def test_tiers_that_get_a_version_whole_have_no_view() -> None:
    found = link('[link]\n[link.tiers.slow]\nsilos = ["b"]\ndownload_values = "bf16"')
    assert found.views(3) == {"slow": Packing(1.0, "bf16")}
    assert found.download(3, "a") is None
    later = link("[link]\ndownload_decay = 0.5\ndecay_every = 2")
    assert (later.views(1), later.views(2)) == ({}, {"": Packing(0.5, "fp32")})


def test_terms_with_tiers_read_back_and_terms_without_have_the_digest_they_had() -> None:
    for text in (TIERED, "[link]\nupload_density = 0.5"):
        digests = {f"{part}_sha256": "0" * 64 for part in ("archive", "initial", "manifest")}
        terms = JobTerms(file=parse_job_file(JOB + text), **digests)
        assert parse_terms(terms.encode()) == terms
        told = b"download_decay" in terms.encode(), b"tiers" in terms.encode()
        assert told == (text is TIERED, text is TIERED)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("upload_density = 0.5\nupload_decay = 0.5", "decay_every: after how many versions"),
        ("upload_density = 0.5\ndecay_every = 5", "decay_every: no density falls"),
        ("upload_density = 0.5\ndecay_every = 0\nupload_decay = 0.5", "link.decay_every"),
        ("download_decay = 0.0\ndecay_every = 5", "link.download_decay"),
        ("download_decay = 1.5\ndecay_every = 5", "link.download_decay"),
        ('[link.tiers.slow]\nsilos = ["b"]', "link.tiers.slow: Value error, says nothing"),
        ('[link.tiers.slow]\nsilos = ["b"]\nupload_density = 1.0', "says nothing"),
        ("[link.tiers.slow]\nsilos = []\nupload_density = 0.5", "link.tiers.slow.silos"),
        ("[link.tiers.slow]\nupload_density = 0.5", "link.tiers.slow.silos"),
        ('[link.tiers."so slow"]\nsilos = ["b"]\nupload_density = 0.5', "link.tiers.so slow"),
        ('[link.tiers.slow]\nsilos = ["No Name"]\nupload_density = 0.5', "link.tiers.slow.silos.0"),
        ('[link.tiers.slow]\nsilos = ["b"]\nupload_density = 0.0', "link.tiers.slow.upload_density"),
        ('[link.tiers.slow]\nsilos = ["b"]\nupload_decay = 0.5', "unknown key link.tiers.slow.upload_decay"),
        ('[link.tiers.slow]\nsilos = ["b", "b"]\nupload_density = 0.5', "b stands in them twice"),
        (
            '[link.tiers.one]\nsilos = ["c", "b"]\nupload_density = 0.5\n'
            '[link.tiers.two]\nsilos = ["b"]\nupload_density = 0.25',
            "tiers: b stands in them twice; a silo is in one tier or in none",
        ),
    ],
)
def test_what_makes_no_sense_is_said(text: str, said: str) -> None:
    with pytest.raises(Refused) as refused:
        parse_job_file(f"{JOB}[link]\n{text}")
    assert said in str(refused.value)


@pytest.mark.parametrize(
    "text",
    [
        "download_decay = 0.5\ndecay_every = 5",
        '[link.tiers.slow]\nsilos = ["b"]\ndownload_density = 0.5',
        '[link.tiers.slow]\nsilos = ["b"]\ndownload_values = "bf16"',
    ],
)
def test_models_are_not_mixed_with_views_of_any_tier_or_version(text: str) -> None:
    with pytest.raises(Refused, match="leave its download_ keys out"):
        parse_job_file(f'{JOB}[aggregation]\nstrategy = "fedasync"\n[link]\n{text}')
    fine = text.replace("download", "upload")
    assert isinstance(parse_job_file(f'{JOB}[aggregation]\nstrategy = "fedasync"\n[link]\n{fine}'), JobFile)
