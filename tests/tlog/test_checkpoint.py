"""Signed tree heads: published ones, and one spelling only."""

import base64

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from anabranch.errors import Misuse, Reason, Refused
from anabranch.tlog.checkpoint import Checkpoint, open_checkpoint, parse, sign
from anabranch.tlog.merkle import EMPTY_ROOT, consistency_proof, inclusion_proof, leaf_hash
from anabranch.tlog.note import NoteSigner, NoteVerifier

TESSERA_VKEY = "example.com/log/testdata+33d7b496+AeHTu4Q3hEIMHNqc6fASMsq3rKNx280NI+oO5xCFkkSx"
TESSERA = (
    "example.com/log/testdata\n15\nrKbDipCvhuX1GZ7g5BBe8sA6BbJ7ja/1nk427v383cs=\n\n"
    "— example.com/log/testdata M9e0luh4jTG+UMBqOUo9/q+yAEvx1ilBEniMvjf1zfcBOhg+CKubMt53MvIt/uEWP6zdkdIQzd/"
    "fmwlM/dlPWF74ewI=\n"
)
ARCHE_VKEY = "arche2025h1.staging.ct.transparency.dev+ba2f06c0+AU0vHmlGCS/PdN8b2OaGmKprLI8HKM+dJ472xgFYh15f"
ARCHE = (
    "arche2025h1.staging.ct.transparency.dev\n1432088532\nU7WM79jrzyhGZ5/GUBTpM7NzwdyfFx61t3RovgcC4Ro=\n\n"
    "— arche2025h1.staging.ct.transparency.dev ui8GwCF1+kWqZrxGdhj4aX3gcw7XUlXQQabg/27lefwhUkzbC3NygNI75MdhL1bf"
    "TW9g8Ei59RA23oHP7Ry1k3ZFWwQ=\n"
    "— remora.n621.de 2net5wAAAABqEiEgPlfF3V06o0Y+fHM+J5J9s27wgxxcOVSpZ/2g/KSiXCg9DEZI+aVCIobWX9sXTynk5XeU/zZ0W"
    "BxtqB0DrAWfBw==\n"
)
GOLDEN = (
    "audit.fed.example/demo\n3\nc8tuftexY3Y4hM6zgeE9HSUKpsHz4FpZNloc4dAmgbo=\n\n"
    "— audit.fed.example/demo YoRC+iKJp1VlqyRyMsFOqCZ0oE1uP2AClufToyAYv3TXucOUF/lRhfXeWcQqTgTC9QKpCC2x8A4D8jzBJ"
    "BZA0w6Ktgw=\n"
)
COSIGNATURES = (
    "— silo.fed.example/hosp-a 9hls/wAAAABq/42A75Kla0MSGnMmBsd7z8vzoziIK77dnbH9L5c19G4UiyW2oYBtPR8/4p+vMidRkZKu"
    "eSjGJlcu8+eWgCctgANCBw==\n"
    "— silo.fed.example/hosp-b FC6/lwAAAABq/42AVT7DdqDwIneET+9R+2jZ3D7gpztFiPgbhjHvlL6hkbWjhbvhHSX4fPo6iLL96zG+"
    "OUaj2XRG0ChtWXkgeVSxAw==\n"
)
GOLDEN_LEAVES = [
    b'{"actor":"spiffe://fed.example/aggregator","detail":{"origin":"audit.fed.example/demo"},'
    b'"time":"2026-11-20T00:00:00.000000Z","type":"log.genesis","v":1}',
    b'{"actor":"spiffe://fed.example/admin/ops1","detail":{"cert_sha256":"' + b"0" * 64 + b'"},'
    b'"silo":"spiffe://fed.example/silo/hosp-a","time":"2026-11-20T00:00:01.000000Z","type":"silo.enrolled","v":1}',
    b'{"actor":"spiffe://fed.example/silo/hosp-a","detail":{"staleness":3,"update_sha256":"'
    + b"1" * 64
    + b'"},'
    b'"time":"2026-11-20T00:00:02.000000Z","type":"update.received","v":1}',
]


def test_published_checkpoints_with_and_without_cosignatures():
    tessera = open_checkpoint(TESSERA, NoteVerifier.from_vkey(TESSERA_VKEY), "example.com/log/testdata")
    assert tessera.size == 15
    arche = open_checkpoint(
        ARCHE, NoteVerifier.from_vkey(ARCHE_VKEY), "arche2025h1.staging.ct.transparency.dev"
    )
    assert (arche.size, arche.root[:2].hex()) == (1432088532, "53b5")


def test_tessera_signatures_are_reproduced():
    seed = base64.b64decode("AeymY/SZAX0jZcJ8enZ5FY1Dz+wTML2yWSkK+9DSF3eg")[1:]
    signer = NoteSigner("example.com/log/testdata", Ed25519PrivateKey.from_private_bytes(seed))
    root = base64.b64decode("rKbDipCvhuX1GZ7g5BBe8sA6BbJ7ja/1nk427v383cs=")
    assert sign(Checkpoint("example.com/log/testdata", 15, root), signer) == TESSERA


def test_our_golden_log(signer, verifier, new_log):
    log = new_log(*GOLDEN_LEAVES)
    assert [leaf_hash(leaf).hex()[:8] for leaf in GOLDEN_LEAVES] == ["dfa7fd5e", "c22b7d6a", "d37cfbc9"]
    assert log.roots[2].hex() == "a1700c71e13e8975715c2cb60bd47f36b632c6a8c5297beb5d7e2383f4b1d4dc"
    assert signer.vkey == "audit.fed.example/demo+628442fa+AYqI4910CfGV/VLbLTy6XXLKZwm/HZQSG/N0iAG0D29c"
    head = Checkpoint("audit.fed.example/demo", 3, log.roots[3])
    assert sign(head, signer) == GOLDEN
    assert open_checkpoint(GOLDEN + COSIGNATURES, verifier, "audit.fed.example/demo") == head
    [sibling] = inclusion_proof(2, 3, log.node)
    assert base64.b64encode(sibling) == b"oXAMceE+iXVxXCy2C9R/NrYyxqjFKXvrXX4jg/Sx1Nw="
    [grown] = consistency_proof(2, 3, log.node)
    assert base64.b64encode(grown) == b"03z7yXw0MNA3xpOfuF0qTc7SYN5M7/nGyM16CW+D+fA="


def test_an_empty_log_has_a_checkpoint(signer, verifier):
    head = Checkpoint(signer.name, 0, EMPTY_ROOT)
    assert open_checkpoint(sign(head, signer), verifier, signer.name) == head
    with pytest.raises(Misuse):
        Checkpoint(signer.name, 0, bytes(32))


def test_another_log_of_the_same_key_is_refused(signer, verifier):
    other = signer.sign(Checkpoint("audit.fed.example/other", 0, EMPTY_ROOT).encode())
    with pytest.raises(Refused) as caught:
        open_checkpoint(other, verifier, signer.name)
    assert caught.value.code is Reason.MALFORMED
    with pytest.raises(Misuse):
        sign(Checkpoint("audit.fed.example/other", 0, EMPTY_ROOT), signer)


ROOT = base64.b64encode(bytes(range(32))).decode()


def test_round_trip_of_the_text():
    for size in (1, 9, 10, 2**53 - 1):
        text = f"log.example/a\n{size}\n{ROOT}\n"
        assert parse(text).encode() == text


@pytest.mark.parametrize(
    "text",
    [
        "",
        f"log.example\n1\n{ROOT}",
        f"log.example\n1\n{ROOT}\n\n",
        f"log.example\n1\n{ROOT}\nextension\n",
        f"\n1\n{ROOT}\n",
        f"log example\n1\n{ROOT}\n",
        f"log+example\n1\n{ROOT}\n",
        f"log.example\n01\n{ROOT}\n",
        f"log.example\n+1\n{ROOT}\n",
        f"log.example\n-1\n{ROOT}\n",
        f"log.example\n 1\n{ROOT}\n",
        f"log.example\n١\n{ROOT}\n",
        f"log.example\n{2**53}\n{ROOT}\n",
        f"log.example\n1\n{ROOT[:-1]}\n",
        f"log.example\n1\n{ROOT.replace('8=', '9=')}\n",
        f"log.example\n1\n{base64.b64encode(bytes(31)).decode()}\n",
        f"log.example\n1\n{base64.b64encode(bytes(33)).decode()}\n",
        f"log.example\n0\n{ROOT}\n",
    ],
)
def test_only_one_spelling_is_read(text):
    with pytest.raises(Refused) as caught:
        parse(text)
    assert caught.value.code is Reason.MALFORMED
