"""A receipt proves one entry, and no changed part of it proves anything."""

from dataclasses import replace

import pytest

from anabranch.errors import Reason, Refused
from anabranch.tlog.checkpoint import Checkpoint, sign
from anabranch.tlog.entry import encode_entry
from anabranch.tlog.merkle import ProofError, inclusion_proof
from anabranch.tlog.receipt import Receipt, verify_receipt


@pytest.fixture(scope="module")
def log(new_log, make_entry):
    return new_log(*(encode_entry(entry) for entry in entries(make_entry)))


def entries(make_entry):
    return [make_entry("update.retired", job=f"job-{i}") for i in range(11)]


@pytest.fixture
def receipt(log, make_entry, signer):
    return Receipt(
        entry=encode_entry(entries(make_entry)[6]),
        index=6,
        proof=tuple(inclusion_proof(6, 11, log.node)),
        checkpoint=sign(Checkpoint(signer.name, 11, log.roots[11]), signer),
    )


def test_round_trip(receipt, verifier, make_entry, log):
    entry, checkpoint = verify_receipt(receipt, verifier, verifier.name)
    assert entry == entries(make_entry)[6]
    assert checkpoint == Checkpoint(verifier.name, 11, log.roots[11])


def test_every_entry_of_every_size_has_a_receipt(log, make_entry, signer, verifier):
    for size in range(1, 12):
        checkpoint = sign(Checkpoint(signer.name, size, log.roots[size]), signer)
        for index, entry in enumerate(entries(make_entry)[:size]):
            proof = tuple(inclusion_proof(index, size, log.node))
            receipt = Receipt(encode_entry(entry), index, proof, checkpoint)
            assert verify_receipt(receipt, verifier, signer.name)[0] == entry


@pytest.mark.parametrize(
    "change",
    [
        lambda r: {"entry": r.entry.replace(b"job-6", b"job-7")},
        lambda r: {"entry": r.entry + b" "},
        lambda r: {"entry": b""},
        lambda r: {"index": 5},
        lambda r: {"index": 7},
        lambda r: {"index": 11},
        lambda r: {"index": -1},
        lambda r: {"proof": r.proof[:-1]},
        lambda r: {"proof": r.proof[::-1]},
        lambda r: {"proof": (*r.proof, r.proof[0])},
        lambda r: {"proof": (bytes(32), *r.proof[1:])},
        lambda r: {"proof": (r.proof[0][:31], *r.proof[1:])},
        lambda r: {"proof": ()},
    ],
)
def test_a_changed_proof_is_refused(receipt, verifier, change):
    with pytest.raises(ProofError) as caught:
        verify_receipt(replace(receipt, **change(receipt)), verifier, verifier.name)
    assert caught.value.code is Reason.DIGEST_MISMATCH


def test_every_byte_of_the_checkpoint_matters(receipt, verifier):
    note = receipt.checkpoint
    for at in range(len(note)):
        changed = note[:at] + ("0" if note[at] != "0" else "1") + note[at + 1 :]
        with pytest.raises(Refused):
            verify_receipt(replace(receipt, checkpoint=changed), verifier, verifier.name)


def test_a_checkpoint_of_another_log_or_size_is_refused(receipt, verifier, signer, log):
    with pytest.raises(Refused):
        verify_receipt(receipt, verifier, "audit.fed.example/other")
    for size in (6, 7, 10):
        other = sign(Checkpoint(signer.name, size, log.roots[size]), signer)
        with pytest.raises(ProofError):
            verify_receipt(replace(receipt, checkpoint=other), verifier, signer.name)


def test_what_is_in_the_log_but_no_entry_is_refused(new_log, signer, verifier):
    junk = b'{"type":"log.genesis"}'
    log = new_log(junk)
    receipt = Receipt(junk, 0, (), sign(Checkpoint(signer.name, 1, log.roots[1]), signer))
    with pytest.raises(Refused) as caught:
        verify_receipt(receipt, verifier, signer.name)
    assert caught.value.code is Reason.MALFORMED
