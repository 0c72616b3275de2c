"""The strategies' keys in a job file: what belongs, what does not, and what people are told."""

import json

import pytest

from anabranch.errors import Reason, Refused
from anabranch.terms import Aggregation, JobTerms, ServerOptimizer, parse_job_file, parse_terms

JOB = '[job]\nname = "digits"\ntask = "task.py:Digits"\n'


def terms_of(text):
    digests = dict.fromkeys(("archive_sha256", "initial_sha256", "manifest_sha256"), "a" * 64)
    return JobTerms(file=parse_job_file(JOB + text), **digests)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (
            'strategy = "fedasync"\nbuffer = 3',
            "buffer is a key of fedbuff and ca2fl; fedasync does not read it",
        ),
        (
            'strategy = "fedasync"\nbuffer = 2',
            "buffer is a key of fedbuff and ca2fl; fedasync does not read it",
        ),
        (
            'strategy = "fedbuff"\nalpha = 0.5',
            "alpha is a key of fedasync and fedcompass; fedbuff does not read it, leave it out",
        ),
        ("hinge = { until = 3 }", "hinge is a key of fedasync and fedcompass; fedbuff does not"),
        ("s_max = 8", "s_max is a key of afl-dw; fedbuff does not"),
        ('interval = "5m"', "interval is a key of fedfix; fedbuff does not"),
        ('strategy = "ca2fl"\nmin_arrival = 0.5', "min_arrival is a key of fedfix; ca2fl does not"),
        (
            'strategy = "ca2fl"\nstaleness_exponent = 0.5',
            "staleness_exponent is a key of fedbuff and fedasync and fedcompass",
        ),
        ('strategy = "fedavg"\nbuffer = 3', "buffer is a key of fedbuff and ca2fl; fedavg does not"),
        ('strategy = "fedavg"\nnormalise = "count"', "normalise is a key of fedbuff; fedavg does not"),
        ('strategy = "afl-dw"', "afl-dw needs s_max: the staleness at which half of an update counts"),
        ('strategy = "fedfix"', "fedfix needs interval: how long a window is"),
        ('strategy = "fedfix"\ninterval = "soon"', "is not a duration|could not convert"),
        ('strategy = "fedfix"\ninterval = "0s"', "aggregation.interval is at least 1s"),
        ('strategy = "fedasync"\nalpha = 0', "aggregation.alpha: .*greater than 0"),
        ('strategy = "fedasync"\nalpha = 1.5', "aggregation.alpha: .*less than or equal to 1"),
        ('strategy = "fedasync"\nhinge = { slop = 3 }', "unknown key aggregation.hinge.slop"),
        (
            'strategy = "fedasync"\nhinge = {}\nstaleness_exponent = 0.5',
            "staleness_exponent and hinge are two ways to weight by staleness; keep one",
        ),
        ('strategy = "ca2fl"\nbuffer = 51', "buffer is at most 50 with ca2fl"),
        ('strategy = "fedprox"', "aggregation.strategy: Input should be 'fedavg', 'fedbuff'"),
        ('server_optimizer = { name = "yogi", momentum = 0.9 }', "momentum is a key of sgd; yogi does not"),
        ("server_optimizer = { beta2 = 0.9 }", "beta2 is a key of adam and adamw and yogi; sgd does not"),
        (
            'server_optimizer = { name = "adam", weight_decay = 0.1 }',
            "weight_decay is a key of adamw; adam does",
        ),
        ("server_optimizer = { delay_threshold = -1 }", "delay_threshold"),
    ],
)
def test_a_key_that_does_not_belong_is_explained(text, words):
    with pytest.raises(Refused, match=words) as caught:
        parse_job_file(f"{JOB}[aggregation]\n{text}\n")
    assert caught.value.code is Reason.MALFORMED


@pytest.mark.parametrize("strategy", ["fedasync", "ca2fl", 'afl-dw"\ns_max = "3', 'fedfix"\ninterval = "1m'])
def test_strategies_that_weigh_equally_want_no_record_counts(strategy):
    text = f'[silos]\nweighting = "examples"\n[aggregation]\nstrategy = "{strategy}"\n'
    with pytest.raises(Refused, match="weighs silos equally, and needs no record counts"):
        parse_job_file(JOB + text)


def test_a_script_has_a_loop_of_its_own():
    with pytest.raises(Refused, match=r"train\.py has a loop of its own"):
        parse_job_file('[job]\nname = "x"\ntask = "train.py"\n[training]\nproximal = 0.1\n')
    with pytest.raises(Refused, match=r"training.proximal.*greater than 0"):
        parse_job_file(JOB + "[training]\nproximal = 0\n")


PRIVATE = "[privacy]\nepsilon = 8.0\ndelta = 1e-5\ncycles_max = 40\n"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (
            "",
            'training.buffers: statistics of records would leave without noise; with .privacy. it is "none"',
        ),
        ('[training]\nbuffers = "none"\n[silos]\nweighting = "examples"\n', "silos.weighting: record counts"),
        (
            '[training]\nbuffers = "none"\n[link]\nupload_density = 0.1\nupload_feedback = 0.9\n',
            "link.upload_feedback: an update would hold what earlier ones left out",
        ),
        (
            '[training]\nbuffers = "none"\n[stop]\npatience = 3\n',
            "stop.patience: a private job is not evaluated",
        ),
    ],
)
def test_what_privacy_does_not_go_with_is_said(text, words):
    with pytest.raises(Refused, match=words):
        parse_job_file(JOB + text + PRIVATE)


def test_a_private_job_is_a_task():
    with pytest.raises(Refused, match="a loop of its own, which nobody can hold to it"):
        parse_job_file('[job]\nname = "x"\ntask = "train.py"\n[training]\nbuffers = "none"\n' + PRIVATE)
    assert parse_job_file(JOB + '[training]\nbuffers = "none"\n' + PRIVATE).privacy is not None


def test_what_a_strategy_assumes_stands_in_the_terms():
    """Silos approve values, not defaults that a later release might change."""
    said = json.loads(terms_of('[aggregation]\nstrategy = "fedasync"\nhinge = {}\n').encode())
    assert said["file"]["aggregation"]["alpha"] == 0.6
    assert said["file"]["aggregation"]["buffer"] == 1
    assert said["file"]["aggregation"]["hinge"] == {"slope": 10.0, "until": 4}
    said = json.loads(terms_of('[aggregation]\nstrategy = "fedfix"\ninterval = "5m"\n').encode())
    assert said["file"]["aggregation"]["min_arrival"] == 0.1


def test_terms_that_use_nothing_new_have_the_digest_they_always_had():
    text = "[silos]\nmin = 3\n[aggregation]\nbuffer = 3\nstaleness_exponent = 0.5\n"
    assert terms_of(text).digest() == "e7bc7b4f917a332a27ded519ceba8d0f2369d7ddda8269b5db101632a3732e7b"
    for later in ("alpha", "hinge", "s_max", "interval", "min_arrival", "proximal", "delay"):
        assert later not in terms_of(text).encode().decode()


@pytest.mark.parametrize(
    "text",
    [
        'strategy = "fedavg"',
        'strategy = "fedasync"',
        'strategy = "fedasync"\nalpha = 0.9\nhinge = { slope = 2.0, until = 1 }',
        'strategy = "afl-dw"\ns_max = 6',
        'strategy = "ca2fl"\nbuffer = 4\nserver_optimizer = { name = "yogi", delay_threshold = 5 }',
        'strategy = "fedfix"\ninterval = "90s"\nserver_optimizer = { name = "adamw" }',
    ],
)
def test_terms_are_read_back(text):
    terms = terms_of(f"[training]\nproximal = 0.01\n[aggregation]\n{text}\n")
    assert parse_terms(terms.encode()) == terms


def test_staleness_weighting_is_off_unless_asked_for():
    assert Aggregation(strategy="fedasync").staleness_exponent == 0
    assert Aggregation(strategy="fedasync").hinge is None
    assert ServerOptimizer().delay_threshold is None
