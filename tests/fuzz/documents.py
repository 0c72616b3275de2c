"""What both ends parse: tensor files, identities, job terms, errors. `anabranch.wire` and `anabranch.terms`."""

import ssl
from collections.abc import Callable, Sequence
from datetime import timedelta
from functools import cache
from typing import Any, get_args

import grpc
import numpy as np
import safetensors.numpy
from cryptography.hazmat.primitives.serialization import Encoding

from anabranch.errors import AnabranchError
from anabranch.link import Packing, Values
from anabranch.terms import JobFile, JobTerms, parse_job_file, parse_terms
from anabranch.wire import identity, limits, packed, status, tensors
from anabranch.wire.bundle import FederationInfo, JoinBundle, parse_bundle, parse_federation
from anabranch.wire.header import check_header_bytes
from anabranch.wire.manifest import parse_manifest
from tests.fuzz import scratch, shapes
from tests.fuzz.target import Target
from tests.fuzz.wire import KEY, ORIGIN, SIGNER, TIME, A, B, C, text
from tests.wire import pki
from tests.wire.samples import ARRAYS, MANIFEST

PACKED_VALUES: tuple[Values, ...] = get_args(Values)

# --- tensors ---------------------------------------------------------------------------------------------------------


def tensor_header(data: bytes) -> None:
    check_header_bytes(data, MANIFEST.file_bytes, MANIFEST)


def tensor_file(data: bytes) -> bytes:
    """Admitted by us: then it is our own spelling, and the library reads the same numbers."""
    path = scratch.file("update.safetensors", data)
    tensors.check_file(path, MANIFEST)
    tensors.check_values(path, MANIFEST)
    read = tensors.read_tensors(path, MANIFEST)
    same(read, safetensors.numpy.load(data))
    tensors.write_tensors(path, MANIFEST, read)
    return path.read_bytes()


def foreign_tensor_file(data: bytes) -> None:
    """Any all-float32 file we take, the library takes; names, shapes and numbers are the same."""
    path = scratch.file("initial.safetensors", data)
    tensors.read_manifest(path)
    manifest, _ = tensors.canonicalise(path, path.with_name("canonical.safetensors"))
    same(
        tensors.read_tensors(path.with_name("canonical.safetensors"), manifest), safetensors.numpy.load(data)
    )


def packed_file(data: bytes) -> bytes | None:
    """Admitted by us: then it expands to finite numbers; and these, if they round to themselves, pack to the same bytes."""
    path, dense = scratch.file("update.packed", data), scratch.file("expanded.safetensors", b"")
    values = next((v for v in PACKED_VALUES if data.startswith(packed.header(MANIFEST, v))), "fp32")
    packing = Packing(1, values)
    packed.check_packed(path, MANIFEST, packing)
    packed.expand(path, MANIFEST, values, dense)
    tensors.check_values(dense, MANIFEST)
    with packed.PackedFile(path, MANIFEST, values) as found:
        part = np.empty(2, np.float32)
        found.read("fc.weight", 3, 5, part)
    assert part.tobytes() == tensors.read_tensors(dense, MANIFEST)["fc.weight"].reshape(-1)[3:5].tobytes()
    if values not in ("fp32", "int2"):  # these two lose nothing a second time
        return None
    with tensors.TensorFile(dense, MANIFEST) as read:
        packed.pack(read, MANIFEST, packing, path)
    return path.read_bytes()


def packed_files() -> list[bytes]:
    path = scratch.file("good.packed", b"")
    dense = scratch.file("good.safetensors", b"")
    tensors.write_tensors(dense, MANIFEST, ARRAYS)
    found = []
    for values in PACKED_VALUES:
        with tensors.TensorFile(dense, MANIFEST) as source:
            packed.pack(source, MANIFEST, Packing(1, values), path)
        found.append(path.read_bytes())
    return found


def same(ours: dict[str, Any], theirs: dict[str, Any]) -> None:
    assert ours.keys() == theirs.keys()
    for name, array in ours.items():
        assert array.shape == theirs[name].shape
        assert array.tobytes() == theirs[name].tobytes()


def tensor_files() -> list[bytes]:
    path = scratch.file("good.safetensors", b"")
    tensors.write_tensors(path, MANIFEST, ARRAYS)
    other = safetensors.numpy.save(
        {"b": np.ones((2, 3), np.float32), "a": np.zeros(0, np.float32)}, {"format": "np"}
    )
    return [path.read_bytes(), other]


def usable_manifest(data: bytes) -> bytes:
    """Every shape it admits, an array can have."""
    found = parse_manifest(data)
    for spec in found.specs:
        if spec.elements < 1000:
            np.empty(spec.shape, np.float32)
    return found.encode()


# --- identities ------------------------------------------------------------------------------------------------------


@cache
def ca() -> pki.Authority:
    return pki.authority()


def certificate(data: bytes) -> None:
    """A leaf as TLS shows it; none but one that our CA signed is somebody."""
    found = identity.parse_chain(ssl.DER_cert_to_PEM_cert(data).encode())[0]
    identity.verify_leaf(found, [ca().root], [ca().issuing], pki.NOW.timestamp())
    assert data in certificates()


@cache
def certificates() -> list[bytes]:
    made = [
        pki.leaf(ca()),
        pki.leaf(ca(), uris=[pki.AGGREGATOR], hosts=["localhost", "127.0.0.1"], usages=[pki.SERVER]),
        pki.leaf(ca(), uris=[pki.ADMIN], life=timedelta(hours=12)),
        pki.leaf(ca(), mails=["a@b.example"]),
        ca().issuing,
    ]
    return [cert.public_bytes(Encoding.DER) for cert in made]


def chain(data: bytes) -> None:
    """What an enrolling silo does with the chain it is sent."""
    leaf, *intermediates = identity.parse_chain(data)
    identity.verify_leaf(leaf, [ca().root], intermediates, pki.NOW.timestamp(), "silo")
    identity.fingerprint(leaf)


def join(parse: Callable[[bytes], JoinBundle | FederationInfo]) -> Callable[[bytes], None]:
    def given(data: bytes) -> None:
        found = parse(data)
        assert parse(found.encode()) == found
        found.ca_pem.encode("ascii")  # as `ssl` is given it
        identity.parse_chain(found.ca_pem.encode())

    return given


@cache
def bundles() -> list[bytes]:
    info = {
        "server": "fed.example:7443", "enrolment": "[::1]:7444", "ca_pem": ca().pem.decode(),
        "ca_pins": (identity.spki_pin(ca().root),), "federation": pki.FEDERATION, "log_origin": ORIGIN,
        "log_vkey": SIGNER.vkey, "silo": "north",
    }  # fmt: skip
    joining = JoinBundle(**info, token_id="t1", token="ab" * 32, expires=TIME)  # type: ignore[arg-type]
    return [joining.encode(), joining.federation_info().encode()]


# --- terms, status ---------------------------------------------------------------------------------------------------

JOB_TOML = b"""[job]
name = "digits"
task = "task.py:Digits"
requires = ["monai>=1.4"]
params = { depth = 3, rate = 0.5 }
[silos]
min = 3
[training]
local_steps = 20
optimizer = { name = "sgd", lr = 0.1 }
progress_timeout = "10m"
[aggregation]
max_wait = "10m"
max_update_norm = 4.0
[stop]
versions = 80
[link]
upload_density = 0.5
upload_decay = 0.5
decay_every = 4
[link.tiers.slow]
silos = ["north", "a"]
download_density = 0.25
upload_values = "int8"
"""
ASYNCHRONOUS_TOML = b"""
[job]
name = "digits"
task = "task.py:Digits"
base = "tiny"
[adapter]
rank = 4
targets = ["query", "value"]
heads = ["classifier"]
freeze_a = true
[training]
proximal = 0.01
[aggregation]
strategy = "fedasync"
alpha = 0.7
hinge = { slope = 3.0, until = 2 }
server_optimizer = { name = "adamw", weight_decay = 0.1, delay_threshold = 4 }
"""
WINDOWS_TOML = b"""
[job]
name = "digits"
task = "task.py:Digits"
[aggregation]
strategy = "fedfix"
interval = "10m"
min_arrival = 0.2
"""


def terms() -> list[bytes]:
    file, mixing = (parse_job_file(text.decode()) for text in (JOB_TOML, ASYNCHRONOUS_TOML))
    bare = JobFile.model_validate({"job": {"name": "a", "task": "train.py"}})
    return [
        JobTerms(file=one, archive_sha256=A, initial_sha256=B, manifest_sha256=C, base_sha256=base).encode()
        for one, base in ((file, None), (mixing, A), (bare, None))
    ]


class Failure(grpc.RpcError):
    """What gRPC raises: a code, a text, and pairs of which some are bytes."""

    def __init__(self, data: bytes) -> None:
        code, _, rest = data.partition(b"\n")
        self._code = list(grpc.StatusCode)[len(code) % len(grpc.StatusCode)]
        lines = rest.decode("utf-8", "replace").split("\n")
        self._details = lines.pop(0) if lines else None
        self._pairs = [
            (key, value if key != "b" else value.encode())
            for key, _, value in (x.partition("=") for x in lines)
        ]

    def code(self) -> grpc.StatusCode:
        return self._code

    def details(self) -> str | None:
        return self._details

    def trailing_metadata(self) -> Sequence[tuple[str, Any]]:
        return self._pairs


def failure(data: bytes) -> None:
    """Whatever a peer says, it is one of ours; and what we would say of it can be sent."""
    meant = status.from_rpc_error(Failure(data))
    assert isinstance(meant, AnabranchError)
    _, message, metadata = status.to_status(meant)
    assert len(message) <= limits.STATUS_MESSAGE
    assert all(value.isascii() for _, value in metadata)
    raise meant


FAILURES = [
    b"...\nno such job\nanabranch-error=refused\nanabranch-reason=not_found",
    b"\nwait\nanabranch-error=unavailable",
    b"..\nx\nb=y",
]

DOCUMENTS = (
    Target("manifest", usable_manifest, lambda: [MANIFEST.encode()], shapes.json_document),
    Target("tensor header", tensor_header, lambda: [MANIFEST.header()]),
    Target("tensor file", tensor_file, tensor_files),
    Target("foreign tensor file", foreign_tensor_file, tensor_files, shapes.tensor_file),
    Target("packed file", packed_file, packed_files, shapes.packed_file(3)),
    Target("identity", text(lambda t: identity.parse_identity(t).uri), lambda: [u.encode() for u in (pki.SILO, pki.AGGREGATOR, pki.ADMIN)]),
    Target("certificate", certificate, certificates),
    Target("certificate chain", chain, lambda: [pki.pem(pki.leaf(ca()), ca().issuing)]),
    Target("private key", lambda data: identity.private_pem(identity.load_private(data)) and None, lambda: [identity.private_pem(KEY), identity.private_pem(pki.p256())]),
    Target("join bundle", join(parse_bundle), lambda: bundles()[:1], shapes.json_document),
    Target("federation.json", join(parse_federation), lambda: bundles()[1:], shapes.json_document),
    Target("job terms", lambda data: parse_terms(data).encode(), terms, shapes.json_document),
    Target("job.toml", text(parse_job_file), lambda: [JOB_TOML, ASYNCHRONOUS_TOML, WINDOWS_TOML], shapes.toml_text),
    Target("error of a peer", failure, lambda: FAILURES, errors=(AnabranchError,)),
)  # fmt: skip
