"""The one way in and out of a process that runs a job's code: a JSON object per line over two pipes it inherits.

Neither end trusts the other the same way. What the daemon sends is believed. What the process sends may come from the
job's code: every line is bounded and held against a closed schema before the daemon acts on it. Standard output is
not the channel, so a task that prints disturbs nothing.
"""

import json
import os
import select
import time
from collections.abc import Iterator
from typing import Annotated, Any, BinaryIO, Final, Literal, NotRequired

from pydantic import ConfigDict, Field, TypeAdapter, ValidationError
from typing_extensions import TypedDict

from anabranch.errors import Reason, Refused
from anabranch.terms import explain
from anabranch.wire import limits

ENVIRONMENT: Final = "ANABRANCH_CHANNEL"  # "r,w": descriptors to read and to write
LINE: Final = 64 * limits.KIB  # bytes of one message from the process
PROGRESS_SECONDS: Final = 0.2  # between two reports of progress, at least

Id = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,127}$")]
Count = Annotated[int, Field(ge=0, le=2**53 - 1)]
Number = Annotated[float, Field(allow_inf_nan=False)]
Rate = Annotated[float, Field(ge=0, le=limits.PER_SECOND, allow_inf_nan=False)]  # per second
Share = Annotated[float, Field(ge=0, le=1)]
Metrics = Annotated[
    dict[Annotated[str, Field(pattern=r"^[ -~]{1,64}$")], Number], Field(max_length=limits.METRICS)
]
# What the job's owner is told of an exception. No free text: a message may quote a record.
Word = Annotated[str, Field(pattern=r"^[A-Za-z_][A-Za-z0-9_]{0,63}$")]
CodeLine = Annotated[str, Field(pattern=r"^[A-Za-z0-9_./+@=,-]{1,100}:[0-9]{1,7}$")]

# Daemon to process.


class Begin(TypedDict):
    """First, once: what to run and how to fence it in. Paths are absolute."""

    do: Literal["begin"]
    fence: dict[str, Any]  # isolation.Fence
    terms: dict[str, Any]  # JobTerms
    archive: str  # folder of the unpacked code
    work: str  # folder the process may write to
    data: dict[str, Any]  # path, params, transform; empty for a reviver, which has none
    threads: int  # of each process
    processes: int  # more than one: the ranks of a script
    base: NotRequired[str]  # folder of the base model that the job names
    rank: NotRequired[int]  # of LoRA's pairs, where this silo trains fewer components than travel
    device: NotRequired[str]  # of a reviver's process: cpu, cuda:0; a silo's takes a GPU where it sees one


class Train(TypedDict):
    do: Literal["train"]
    cycle: str  # the lease
    version: int
    parameters: str  # canonical tensor file of the base version
    steps: int
    out: str  # where to write the update


class Evaluate(TypedDict):
    do: Literal["evaluate"]
    cycle: str
    version: int
    parameters: str
    split: str


class Teaching(TypedDict):
    silo: str
    base: str  # canonical tensor file of the version it was trained from
    delta: str


class Revive(TypedDict):
    """To a reviver's process, which keeps what it was told of teachers."""

    do: Literal["revive"]
    cycle: str  # the task
    version: int
    head: str  # canonical tensor file
    teachers: list[Teaching]  # those it does not know yet
    seconds: float  # that a revival takes, in the median; 0: there was none
    task_seconds: float  # of the fastest silo's tasks; 0: not known
    out: str  # where to write what distilling added to the head


class Stop(TypedDict):
    """Save what a killed cycle needs to resume, then end."""

    do: Literal["stop"]


Request = Begin | Train | Evaluate | Revive | Stop

# Process to daemon. `is` is a keyword, hence the other spelling of a TypedDict.

Ready = TypedDict("Ready", {"is": Literal["ready"], "kind": Literal["managed", "script"]})
Progress = TypedDict(
    "Progress",
    {
        "is": Literal["progress"],
        "cycle": Id,
        "step": Count,
        "steps": Count,
        "loss": NotRequired[Number],
        "samples_per_second": NotRequired[Rate],  # of training; 0.0: not known
        "tokens_per_second": NotRequired[Rate],
    },
)
Trained = TypedDict(
    "Trained",
    {"is": Literal["trained"], "cycle": Id, "num_examples": Count, "steps": Count, "metrics": Metrics},
)
Evaluated = TypedDict(
    "Evaluated", {"is": Literal["evaluated"], "cycle": Id, "metrics": Metrics, "num_examples": Count}
)
Revived = TypedDict(
    "Revived",
    {
        "is": Literal["revived"],
        "cycle": Id,
        "before": NotRequired[Share],  # agreement
        "after": NotRequired[Share],
        "accuracy_before": NotRequired[Share],
        "accuracy_after": NotRequired[Share],
    },
)
Rested = TypedDict(
    "Rested",
    {
        "is": Literal["rested"],
        "cycle": Id,
        "reason": Literal["warmup", "not_worth", "unsupported", "failed"],
        "why": NotRequired[Word],
    },
)
Failed = TypedDict(
    "Failed",
    {
        "is": Literal["failed"],
        "cycle": NotRequired[Id],  # absent: the process could not start
        "reason": Literal["task_failed", "task_garbage", "task_out_of_memory"],
        "exception": Word,
        "code_line": NotRequired[CodeLine],
    },
)

Message = Ready | Progress | Trained | Evaluated | Revived | Rested | Failed

_MESSAGE: TypeAdapter[Message] = TypeAdapter(
    Annotated[Message, Field(discriminator="is")], config=ConfigDict(extra="forbid", strict=True)
)


class Channel:
    """The process's end. One thread at a time."""

    def __init__(self, reader: BinaryIO, writer: BinaryIO) -> None:
        self._reader = reader
        self._writer = writer
        self._reported = -PROGRESS_SECONDS

    def receive(self) -> Request | None:
        """Wait for the next request. None once the daemon has closed its end or is gone."""
        line = self._reader.readline()
        if not line.endswith(b"\n"):
            return None
        request: Request = json.loads(line)
        return request

    def send(self, message: Message) -> None:
        """Raises BrokenPipeError when the daemon is gone."""
        self._writer.write(json.dumps(message, allow_nan=False).encode("ascii") + b"\n")
        self._writer.flush()

    def close(self) -> None:
        self._reader.close()
        self._writer.close()

    def report(self, progress: Progress) -> None:
        """Send it unless the last report is younger than PROGRESS_SECONDS."""
        now = time.monotonic()
        if now - self._reported >= PROGRESS_SECONDS:
            self._reported = now
            self.send(progress)


def inherited() -> Channel:
    """The channel named by the environment. It is taken: programs the job's code starts do not inherit it."""
    reader, writer = map(int, os.environ.pop(ENVIRONMENT).split(","))
    for fd in (reader, writer):
        os.set_inheritable(fd, False)
    return Channel(os.fdopen(reader, "rb"), os.fdopen(writer, "wb"))


class Incoming:
    """The daemon's reading end: whole, valid messages out of bytes that anyone in the process may have written."""

    def __init__(self, fd: int) -> None:
        """Takes over `fd`."""
        os.set_blocking(fd, False)
        self._fd = fd
        self._bytes = bytearray()
        self.ended = False  # the process closed its end, by ending or otherwise

    def messages(self, timeout: float) -> Iterator[Message]:
        """Messages as they come. Stops when none has come for `timeout` seconds and when there will be no more.

        It may be called again. Raises Refused(TASK_GARBAGE) for a line that is no message; stop the process then.
        """
        while (line := self._line(time.monotonic() + timeout)) is not None:
            yield parse(line)

    def close(self) -> None:
        self.ended = True
        os.close(self._fd)

    def _line(self, deadline: float) -> bytes | None:
        poll = select.poll()
        if not self.ended:
            poll.register(self._fd, select.POLLIN)
        while (stop := self._bytes.find(b"\n")) < 0:
            if len(self._bytes) > LINE:
                raise Refused(
                    Reason.TASK_GARBAGE, f"the training process sent a line of more than {LINE} bytes"
                )
            left = deadline - time.monotonic()
            if self.ended or not poll.poll(max(left, 0) * 1000):
                return None
            received = os.read(self._fd, LINE)
            self.ended = not received
            self._bytes += received
        line = bytes(self._bytes[:stop])
        del self._bytes[: stop + 1]
        return line


def parse(line: bytes) -> Message:
    """One message of a training process. Raises Refused(TASK_GARBAGE)."""
    try:
        return _MESSAGE.validate_json(line)
    except ValidationError as error:
        raise Refused(
            Reason.TASK_GARBAGE, f"the training process sent no message: {explain(error)[:300]}"
        ) from None
