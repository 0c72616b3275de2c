from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from anabranch.errors import Reason, Refused
from anabranch.terms import parse_terms
from anabranch.wire import limits
from anabranch.wire.canonical import sha256
from anabranch.wire.manifest import parse_manifest
from console import submit
from console.demo.settings import Settings, job_file, slowness

JOB = Path(submit.__file__).parent / "demo" / "job"


def test_what_is_uploaded_is_what_the_terms_name(uploaded) -> None:
    messages, _ = uploaded
    header = messages[0].header
    terms = parse_terms(header.terms)
    body = b"".join(message.chunk for message in messages[1:])
    assert sha256(body[: header.archive_bytes]) == terms.archive_sha256
    assert sha256(body[header.archive_bytes :]) == terms.initial_sha256
    assert sha256(header.manifest) == terms.manifest_sha256
    assert len(body) == header.archive_bytes + header.initial_bytes
    assert max(len(message.chunk) for message in messages) <= limits.CHUNK
    assert parse_manifest(header.manifest).file_bytes == header.initial_bytes


def test_a_person_s_file_replaces_version_0(uploaded, tmp_path: Path) -> None:
    messages, initial = uploaded
    tensors = {name: value + 1 for name, value in load_file(initial).items()}
    given = tmp_path / "given.safetensors"
    save_file(tensors, given, metadata={"format": "pt"})
    folder, file = submit.read(JOB)
    with submit.prepared(folder, file, given) as job:
        found = load_file(job.initial)
    assert all(np.array_equal(found[name], value) for name, value in tensors.items())
    assert job.manifest == messages[0].header.manifest
    assert job.terms.initial_sha256 != parse_terms(messages[0].header.terms).initial_sha256


def _job(tmp_path: Path, toml: str, code: str = "") -> Path:
    (tmp_path / "job.toml").write_text(toml)
    (tmp_path / "task.py").write_text(code)
    return tmp_path


@pytest.mark.parametrize(
    ("toml", "code", "word"),
    [
        ('[job]\nname = "x"\ntask = "other.py:T"', Reason.NOT_FOUND, "other.py"),
        ('[job]\nname = "X Y"\ntask = "task.py:T"', Reason.MALFORMED, "job.name"),
        ('[job]\nname = "x"\ntask = "task.py:T"\nspeed = 3', Reason.MALFORMED, "unknown key job.speed"),
        ("[job", Reason.MALFORMED, "not TOML"),
    ],
)
def test_a_bad_job_file_is_explained(tmp_path: Path, toml: str, code: Reason, word: str) -> None:
    with pytest.raises(Refused, match=word) as refused:
        submit.read(_job(tmp_path, toml))
    assert refused.value.code is code


def test_a_toml_file_beside_the_code_names_the_job(tmp_path: Path) -> None:
    folder = _job(tmp_path, '[job]\nname = "x"\ntask = "task.py:T"')
    (folder / "job.toml").rename(folder / "small.toml")
    found, file = submit.read(folder / "small.toml")
    assert (found, file.job.name) == (folder, "x")


def test_a_model_that_cannot_be_built_shows_the_person_s_own_traceback(tmp_path: Path) -> None:
    folder = _job(tmp_path, '[job]\nname = "x"\ntask = "task.py:T"', "raise OSError('no weights here')\n")
    with pytest.raises(Refused, match="no weights here") as refused, submit.prepared(*submit.read(folder)):
        pass
    assert refused.value.code is Reason.TASK_FAILED


def test_a_task_that_lacks_something_is_told_in_a_sentence(tmp_path: Path) -> None:
    folder = _job(tmp_path, '[job]\nname = "x"\ntask = "task.py:T"', "class S: pass\n")
    with (
        pytest.raises(Refused, match=r"task\.py has no class T$") as refused,
        submit.prepared(*submit.read(folder)),
    ):
        pass
    assert "Traceback" not in str(refused.value)


def test_the_demo_s_options_reach_the_terms() -> None:
    settings = Settings(3, 7, "fedavg", 12, None, Path("x"), False)
    file = job_file(JOB, settings, settings.strategy)
    assert (file.job.seed, file.silos.min) == (7, 3)
    assert (file.aggregation.strategy, file.stop.versions) == ("fedavg", 12)


def test_one_silo_is_10_times_and_one_3_times_slower() -> None:
    assert slowness(5) == [1, 1, 1, 3, 10]
    assert slowness(2) == [3, 10]
    assert slowness(1) == [1]
