"""What an agent takes from a job: its packed code, and whatever its training process says or leaves behind."""

import io
import os
import shutil
import tarfile
from functools import cache

from console import submit
from silo_agent import trial
from silo_agent.training import archive, channel
from tests.fuzz import scratch, shapes
from tests.fuzz.documents import JOB_TOML
from tests.fuzz.target import Target
from tests.training.test_archive import HOSTILE, build, plain


def job_folder(data: bytes) -> None:
    """Who submits a job and who tries it read the same."""
    folder = scratch.folder("job")
    (folder / "task.py").touch()
    (folder / "job.toml").write_bytes(data)
    tried = trial.read_job(folder)
    assert submit.read(folder) == tried


def packed(data: bytes) -> bytes:
    """What we unpack, any tar unpacks to the same; packed again it is the same archive."""
    folder = scratch.folder("archive") / "unpacked"
    shutil.rmtree(folder, ignore_errors=True)
    archive.unpack(data, folder)
    ours = {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    with tarfile.open(fileobj=io.BytesIO(data), mode="r:") as standard:
        theirs = {member.name: standard.extractfile(member).read() for member in standard}  # type: ignore[union-attr]
    assert ours == theirs
    names = set(ours)
    if not any(name.endswith(".pyc") or "__pycache__" in name.split("/") for name in names):
        assert archive.pack(folder) == data
    return data


def archives() -> list[bytes]:
    good = build(plain("job.toml", b"[job]"), plain("lib/net.py", b""), plain("task.py", b"x" * 600))
    return [good, build(), *HOSTILE.values()]


def process_line(data: bytes) -> None:
    channel.parse(data)


def process_output(data: bytes) -> None:
    """However it comes in pieces, nothing beyond two lines' worth is kept."""
    reader, writer = os.pipe()
    incoming = channel.Incoming(reader)
    try:
        for start in range(0, len(data), 4096):
            os.write(writer, data[start : start + 4096])
            for _ in incoming.messages(0):
                pass
            assert len(incoming._bytes) <= 2 * channel.LINE
        os.close(writer)
        writer = -1
        for _ in incoming.messages(0):
            pass
    finally:
        if writer >= 0:
            os.close(writer)
        incoming.close()


PROCESS_LINES = [
    b'{"is":"ready","kind":"managed"}',
    b'{"is":"progress","cycle":"l-1","step":1,"steps":20,"loss":2.5}',
    b'{"is":"trained","cycle":"l-1","num_examples":7,"steps":20,"metrics":{"loss":1.5}}',
    b'{"is":"evaluated","cycle":"l-1","metrics":{"accuracy":0.5},"num_examples":3}',
    b'{"is":"failed","cycle":"l-1","reason":"task_failed","exception":"KeyError","code_line":"task.py:41"}',
]


def saved_state(data: bytes) -> None:
    from silo_agent.training import saved  # imports torch

    path = scratch.file("state", data)
    saved.read(path)


@cache
def saved_states() -> list[bytes]:
    import torch

    from silo_agent.training import saved

    path = scratch.folder("saved") / "state"
    saved.write(path, {"step": 3, "tensor": torch.ones(2, 2), "order": (1, [2.5, None, "a"])})
    return [path.read_bytes()]


TRAINING = (
    Target("job folder", job_folder, lambda: [JOB_TOML], shapes.toml_text),
    Target("job archive", packed, archives),
    Target("message of a training process", process_line, lambda: PROCESS_LINES, shapes.json_document),
    Target("output of a training process", process_output, lambda: [b"\n".join(PROCESS_LINES) + b"\n"]),
    Target("saved training", saved_state, saved_states, shapes.tensor_file, errors=()),
)  # fmt: skip
