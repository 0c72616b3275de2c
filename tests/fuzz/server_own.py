"""What the server parses besides requests: its own files, and whatever is said to its health port."""

import http.client
import shutil
import socket
from functools import cache

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from anabranch.errors import Corrupt
from anabranch.terms import seconds
from anabranch.tlog.checkpoint import Checkpoint, sign
from anabranch.tlog.note import NoteSigner
from server import config
from server.audit.register import CheckpointRegister, registered_checkpoint
from server.ca.authority import ISSUING, ISSUING_KEY, ROOT, create_authority, open_authority
from server.health import Health
from tests.fuzz import scratch, shapes
from tests.fuzz.target import Target
from tests.fuzz.wire import ORIGIN, SIGNER, VERIFIER
from tests.wire import pki

# --- the server's own files ------------------------------------------------------------------------------------------


def server_toml(data: bytes) -> None:
    """Settings that are read can be used."""
    directory = scratch.folder("config")
    (directory / config.FILE).write_bytes(data)
    found = config.read_config(directory)
    NoteSigner(found.log_origin, Ed25519PrivateKey.from_private_bytes(bytes(32)))
    assert 0 <= seconds(found.drain) < 1e9
    (directory / config.FILE).write_text(config.write_config(found))
    assert config.read_config(directory) == found


def settings() -> list[bytes]:
    return [config.write_config(config.new_config("fed.example", "localhost", 7443, 7444, 7445)).encode()]


def register(data: bytes) -> None:
    registered_checkpoint(CheckpointRegister(scratch.file("register", data)), VERIFIER, ORIGIN)


def registers() -> list[bytes]:
    """One after its first note, one after its second."""
    path = scratch.folder("registers") / "checkpoint"
    path.unlink(missing_ok=True)
    found, before = [], ""
    for size in (1, 2):
        note = sign(Checkpoint(ORIGIN, size, bytes(32)), SIGNER)
        CheckpointRegister(path).advance(before, note)
        before = note
        found.append(path.read_bytes())
    return found


def authority_file(name: str) -> Target:
    """One file of the authority damaged."""

    def given(data: bytes) -> None:
        directory = scratch.folder("authority")
        for file, content in own_authority().items():
            (directory / file).write_bytes(content)
        (directory / name).write_bytes(data)
        open_authority(directory, "fed.example", pki.NOW.timestamp())

    return Target(f"own CA {name}", given, lambda: [own_authority()[name]], errors=(Corrupt,))


@cache
def own_authority() -> dict[str, bytes]:
    directory = scratch.folder("authority")
    shutil.rmtree(directory)
    create_authority(directory, "fed.example", pki.NOW.timestamp())
    return {name: (directory / name).read_bytes() for name in (ROOT, ISSUING, ISSUING_KEY)}


# --- the health port -------------------------------------------------------------------------------------------------


@cache
def health() -> Health:
    made = Health("127.0.0.1:0", lambda: "", lambda: "starting")

    def complain(*_: object) -> None:
        broken.append(True)

    made._server.handle_error = complain  # type: ignore[method-assign]
    made._server.daemon_threads = True
    made.start()
    return made


broken: list[bool] = []


def probe(data: bytes) -> None:
    """Whatever is said to it, no handler breaks and the next probe is answered."""
    with socket.create_connection(("127.0.0.1", health().port), 5) as caller:
        try:
            caller.sendall(data[:200_000])
            caller.shutdown(socket.SHUT_WR)
            while caller.recv(65536):
                pass
        except OSError:
            pass  # hung up on
    good = http.client.HTTPConnection("127.0.0.1", health().port, timeout=5)
    good.request("GET", "/healthz")
    assert good.getresponse().status == 200
    good.close()
    assert not broken


PROBES = [
    b"GET /readyz HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n",
    b"GET /metrics HTTP/1.0\r\n\r\n",
    b"HEAD / HTTP/1.1\r\n\r\n",
]

OWN = (
    Target("server.toml", server_toml, settings, shapes.toml_text),
    Target("checkpoint register", register, registers, errors=(Corrupt,)),
    *map(authority_file, (ROOT, ISSUING, ISSUING_KEY)),
    Target("health port", probe, lambda: PROBES),
)  # fmt: skip
