"""What fuzzing has found, each with the input that showed it. The table of them is docs/fuzzing.md."""

import math
import ssl
import struct
import tarfile
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from anabranch.errors import MESSAGE, Corrupt, Reason, Refused, Unavailable, plain
from anabranch.terms import JobFile, JobTerms, parse_job_file, parse_terms
from anabranch.tlog.checkpoint import parse as parse_checkpoint
from anabranch.tlog.note import NoteVerifier
from anabranch.tlog.receipt import Receipt
from anabranch.v1 import federation_pb2 as pb
from anabranch.wire import canonical, identity, tensors
from anabranch.wire.bundle import parse_bundle, parse_federation
from anabranch.wire.manifest import Manifest, TensorSpec, parse_manifest
from server.ca.authority import ISSUING_KEY, ROOT, create_authority, open_authority
from server.config import FILE, new_config, read_config, write_config
from server.transport.admin import FASTEST, SLOWEST, between_looks
from silo_agent import approval, messages, policy, probe
from silo_agent.config import Home, load_settings
from silo_agent.training import archive
from tests.fuzz import documents, silo
from tests.fuzz.findings import DEEP, refused
from tests.wire import pki

LONG_NUMBER = "9" * 5000


# --- a job's code and model ------------------------------------------------------------------------------------------


def test_an_archive_member_of_negative_size() -> None:
    """`int` reads "-0000000003" in base 8; writing such a header again raised ValueError."""
    member = tarfile.TarInfo("a.py")
    member.size, member.mode = 3, 0o644
    data = bytearray(member.tobuf(tarfile.USTAR_FORMAT) + b"abc" + bytes(509) + bytes(1024))
    data[124:135] = b"-0000000003"
    assert refused(archive.read, bytes(data), "a.py") is Reason.MALFORMED


def test_an_empty_tensor_whose_dimensions_overflow() -> None:
    """It has no bytes, so it passed; then numpy, and safetensors at the silo, could not make it."""
    shape = (2**40, 2**40, 0)
    with pytest.raises(ValueError, match="too big"):
        np.empty(shape, np.float32)
    assert refused(Manifest, (TensorSpec("a", shape, "trainable"),)) is Reason.SIZE_LIMIT
    text = canonical.encode([{"name": "a", "role": "trainable", "shape": list(shape)}])
    assert refused(parse_manifest, text) is Reason.SIZE_LIMIT


HEADER = '{"a":{"dtype":"F32","shape":[],"data_offsets":[0,4]}}'


@pytest.mark.parametrize(
    "header",
    [
        HEADER.encode("utf-16-le"),
        HEADER.encode("utf-8-sig"),
        HEADER.replace("[0,4]", "[-0,4]").encode(),
        HEADER.replace('{"a"', '{"__metadata__":5,"a"').encode(),
        HEADER.replace('{"a"', '{"__metadata__":{"b":5},"a"').encode(),
    ],
    ids=["UTF-16", "byte order mark", "minus zero", "number as metadata", "number in metadata"],
)
def test_a_tensor_header_we_took_and_safetensors_does_not(tmp_path: Path, header: bytes) -> None:
    import safetensors
    import safetensors.numpy

    path = tmp_path / "file"
    path.write_bytes(struct.pack("<Q", len(header)) + header + bytes(4))
    with pytest.raises(safetensors.SafetensorError):
        safetensors.numpy.load_file(path)
    assert refused(tensors.read_manifest, path) is Reason.MALFORMED


def test_saved_training_that_nests_too_deeply(tmp_path: Path) -> None:
    from safetensors.numpy import save_file

    from silo_agent.training import saved

    save_file({"0": np.zeros(1)}, tmp_path / "state", {"state": DEEP.decode()})
    assert saved.read(tmp_path / "state") is None


# --- files people write ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("text", ["a=" + "[" * 5000, "a=" + LONG_NUMBER], ids=["deep", "long number"])
def test_toml_that_python_cannot_read(tmp_path: Path, text: str) -> None:
    """`tomllib` raises RecursionError and plain ValueError besides its own error."""
    assert refused(parse_job_file, text) is Reason.MALFORMED
    assert refused(policy.parse_policy, text, "policy.toml") is Reason.POLICY
    (tmp_path / "agent.toml").write_text(text)
    assert refused(load_settings, Home(tmp_path)) is Reason.MALFORMED
    (tmp_path / FILE).write_text(text)
    assert refused(read_config, tmp_path) is Reason.MALFORMED


@pytest.mark.parametrize(
    "line",
    [f'max_update_bytes = "{"9" * 400}GiB"', 'hours = ["20:00+01:00-06:00"]'],
    ids=["size", "time zone"],
)
def test_a_policy_that_could_be_read_and_not_be_asked(line: str) -> None:
    """A size beyond a double raised OverflowError; hours with a time zone TypeError when the clock was looked at."""
    text = f"[run]\n{line}\n"
    assert refused(policy.parse_policy, text, "policy.toml") is Reason.POLICY
    assert policy.open_now(
        policy.parse_policy('[run]\nhours = ["20:00-06:00"]\n', ""), datetime(2026, 1, 1, 21)
    )


@pytest.mark.parametrize(
    ("key", "value"),
    [("log_origin", "log+example"), ("log_origin", "Log"), ("drain", "nans"), ("drain", "-1s")],
)
def test_server_settings_the_server_could_not_start_with(tmp_path: Path, key: str, value: str) -> None:
    text = write_config(new_config("fed.example", "localhost", 7443, 7444, 7445))
    lines = [f'{key} = "{value}"' if line.startswith(f"{key} =") else line for line in text.splitlines()]
    (tmp_path / FILE).write_text("\n".join(lines))
    assert refused(read_config, tmp_path) is Reason.MALFORMED


@pytest.mark.parametrize(
    "change",
    [
        {"job": {"name": "a" * 63, "task": "t.py"}},
        {"job": {"name": "a", "task": "t.py"}, "training": {"local_steps": 2**32}},
    ],
    ids=["name", "steps"],
)
def test_terms_no_lease_could_be_told_of(change: dict[str, Any]) -> None:
    """A job's id is its name and nine characters more, at most 64; a lease tells its steps in 32 bits."""
    with pytest.raises(ValueError, match=r"48|2147483647"):
        JobFile.model_validate(change)


# --- identities ------------------------------------------------------------------------------------------------------


def bundle_with(ca_pem: str) -> bytes:
    return canonical.encode({**_bundle(), "ca_pem": ca_pem})


def _bundle() -> dict[str, Any]:
    found: dict[str, Any] = canonical.decode(documents.bundles()[0])
    return found


def test_a_second_authority_under_a_label_that_only_tls_reads() -> None:
    """gRPC trusts TRUSTED CERTIFICATE blocks, which the check of the pins passed over."""
    stranger = pki.pem(pki.authority("evil.example").root).decode()
    smuggled = stranger.replace("BEGIN CERT", "BEGIN TRUSTED CERT").replace("END CERT", "END TRUSTED CERT")
    assert refused(parse_bundle, bundle_with(_bundle()["ca_pem"] + smuggled)) is Reason.BAD_CERTIFICATE
    assert refused(parse_bundle, bundle_with("a comment\n" + _bundle()["ca_pem"])) is Reason.BAD_CERTIFICATE


def test_a_bundle_with_half_a_character() -> None:
    """A lone surrogate is text to JSON and to pydantic, and cannot be encoded."""
    data = documents.bundles()[0].replace(b'"ca_pem":"', b'"ca_pem":"\\ud800')
    assert refused(parse_bundle, data) is Reason.MALFORMED
    data = documents.bundles()[1].replace(b'"ca_pem":"', b'"ca_pem":"\\u00e9')
    assert refused(parse_federation, data) is Reason.MALFORMED


@pytest.mark.parametrize(
    "oid", [b"\x2a\x86\x48\xce\x3d\x02\x01", b"\x2b\x81\x04\x00\x22"], ids=["kind", "curve"]
)
def test_a_certificate_whose_key_cannot_be_read(oid: bytes) -> None:
    """It parses, and its key raised ValueError or UnsupportedAlgorithm when it was first asked for."""
    der = bytearray(documents.ca().root.public_bytes(Encoding.DER))
    at = der.find(oid)
    der[at + len(oid) - 1] ^= 0x40
    pem = ssl.DER_cert_to_PEM_cert(bytes(der))
    assert refused(identity.parse_chain, pem.encode()) is Reason.BAD_CERTIFICATE
    assert refused(parse_bundle, bundle_with(pem)) is Reason.BAD_CERTIFICATE


def test_a_certificate_of_no_known_version(tmp_path: Path) -> None:
    """`cryptography` raises InvalidVersion, which is no ValueError."""
    der = (
        documents.ca()
        .root.public_bytes(Encoding.DER)
        .replace(b"\xa0\x03\x02\x01\x02", b"\xa0\x03\x02\x01\x27", 1)
    )
    pem = ssl.DER_cert_to_PEM_cert(der)
    assert refused(identity.parse_chain, pem.encode()) is Reason.BAD_CERTIFICATE
    assert probe.readable(der) is None
    create_authority(tmp_path, "fed.example", pki.NOW.timestamp())
    (tmp_path / ROOT).write_text(pem)
    with pytest.raises(Corrupt):
        open_authority(tmp_path, "fed.example", pki.NOW.timestamp())


def test_a_private_key_of_a_wrong_length() -> None:
    """An X448 key of 32 bytes: `cryptography` raises InternalError, which is neither ValueError nor UnsupportedAlgorithm."""
    pem = b"MC4CAQAwBQYDK2VvBCIEIAICAgICAgICAgICAgICAgICAgICAgICAgICAgICAgIC"
    data = b"-----BEGIN PRIVATE KEY-----\n" + pem + b"\n-----END PRIVATE KEY-----\n"
    assert refused(identity.load_private, data) is Reason.MALFORMED


def test_a_certificate_of_a_stranger_without_names_or_with_odd_ones() -> None:
    """Told to a person by `check`, which raised ExtensionNotFound and UnsupportedGeneralNameType."""
    error = ssl.SSLCertVerificationError("self-signed")
    error.verify_message = "self-signed"  # type: ignore[misc]
    nameless = pki.leaf(documents.ca(), drop=(x509.SubjectAlternativeName,))
    assert "no host" in str(probe._wrong_host(nameless, "localhost:7443"))
    for der in silo.strange_certificates():
        assert probe._other_ca(probe.readable(der), "localhost:7443", "fed.example", error)
    assert probe.readable(b"\x30\x03\x02\x01\x01") is None


def test_a_key_of_the_authority_of_no_known_kind(tmp_path: Path) -> None:
    create_authority(tmp_path, "fed.example", pki.NOW.timestamp())
    der = bytearray(
        ssl.PEM_cert_to_DER_cert((tmp_path / ISSUING_KEY).read_text().replace("PRIVATE KEY", "CERTIFICATE"))
    )
    der[der.find(b"\x2a\x86\x48\xce\x3d\x02\x01") + 6] ^= 0x40
    pem = ssl.DER_cert_to_PEM_cert(bytes(der)).replace("CERTIFICATE", "PRIVATE KEY")
    (tmp_path / ISSUING_KEY).write_text(pem)
    with pytest.raises(Corrupt):
        open_authority(tmp_path, "fed.example", pki.NOW.timestamp())


# --- what a server says ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seconds", [math.nan, math.inf, -1.0])
def test_a_pause_that_cannot_be_waited(seconds: float) -> None:
    """NaN passed both bounds of the pause, and the agent asked for work without a pause at all."""
    reply = pb.NextTaskReply(wait=pb.Wait(seconds=seconds))
    assert refused(messages.task, reply) is Reason.MALFORMED


@pytest.mark.parametrize("seconds", [math.nan, math.inf, -math.inf, 0.0])
def test_a_watch_without_a_pause(seconds: float) -> None:
    """An administrator's NaN passed both bounds too, and the server answered in a loop without a pause."""
    assert FASTEST <= between_looks(seconds) <= SLOWEST


@pytest.mark.parametrize("split", ["", "²", "a" * 65, "../x"])
def test_a_lease_to_evaluate_on_no_split(split: str) -> None:
    """Its statement could not be made, which ended the agent."""
    lease = pb.Lease()
    lease.CopyFrom(silo.honest()[2])
    lease.split = split
    assert refused(messages.leased, lease) is Reason.MALFORMED


def test_words_of_a_server_command_no_terminal() -> None:
    heard = messages.from_proto(pb.ServerMessage(revoked=pb.Revoked(reason="\x1b[2Jgone\n" + "x" * 5000)))
    assert isinstance(heard, messages.Revoked)
    assert heard.reason.isprintable()
    assert len(heard.reason) <= messages.WORDS


def test_errors_quote_strangers_in_bounds() -> None:
    """A thousand unknown keys, an origin of 100 kB, control characters and half a character."""
    many = canonical.encode({"\x1b[31m" + str(n): n for n in range(5000)})
    for call, data in (
        (parse_terms, many),
        (parse_checkpoint, "o" * 100_000 + "\n0\n" + "A" * 43 + "=\n"),
        (NoteVerifier.from_vkey, "n" * 100_000 + "+00000000+" + "AQ" + "A" * 42),
    ):
        with pytest.raises(Refused) as caught:
            call(data)  # type: ignore[operator]
        assert len(str(caught.value)) <= MESSAGE
        assert str(caught.value).isprintable()
    assert str(Unavailable("a\x1b\ud800\nb")) == "a\ufffd\ufffd\nb"
    assert plain("a\nb" * 10, 5) == "a\ufffdba…"


# --- a job shown to a person -----------------------------------------------------------------------------------------


def test_terms_cannot_hide_what_is_approved() -> None:
    """Control characters in a job's parameters could erase the lines above them on the terminal of who approves."""
    file = JobFile.model_validate(
        {"job": {"name": "a", "task": "t.py", "params": {"x": "\x1b[2K\x1b[1A\nrecord counts  never sent"}}}
    )
    terms = JobTerms(file=file, archive_sha256="a" * 64, initial_sha256="b" * 64, manifest_sha256="c" * 64)
    job = messages.OfferedJob("a-1", terms.encode(), "running", "", 0, b"", Receipt(b"{}", 0, (), "note"))
    for _, text in approval.describe(approval.Proposal(job, terms, terms.digest(), None), "a"):
        assert text.isprintable()


@pytest.mark.parametrize("marker", ["os_name ~= 'x'", "python_version ~= '3'", "'x' == 'y'", "extra === 'x'"])
def test_a_requirement_whose_marker_cannot_be_evaluated(marker: str) -> None:
    """`packaging` parses it; evaluating it raised its own ValueError or KeyError, which ended the agent."""
    assert refused(approval.wanted, f"monai; {marker}") is Reason.MALFORMED
    [missing] = approval.missing_requires(Path("/bin/false"), [f"monai; {marker}"])
    assert "no requirement" in missing
