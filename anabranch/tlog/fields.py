"""What the fields of entries may say: patterns with bounded alphabets, and the types made of them."""

from typing import Annotated

from pydantic import AfterValidator, Field

from anabranch.errors import Refused
from anabranch.terms import METRIC, SPLIT
from anabranch.wire import canonical

_LABEL = r"[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?"
_DOMAIN = (
    rf"(?:{_LABEL}\.){{0,5}}(?:[0-9][0-9-]{{0,19}})?[a-z](?:[a-z0-9-]{{0,41}}[a-z0-9])?"  # no IP address
)

ID = r"^[0-9a-z](?:[0-9a-z_-]{0,62}[0-9a-z])?$"  # leases, updates, jobs, tokens, steps: UUID, hex or name
NONCE = r"^[0-9a-f]{16,64}$"
WORD = r"^[a-z0-9](?:[a-z0-9_-]{0,46}[a-z0-9])?$"
DEVICE = (
    r"^[a-z]{1,16}(?::[0-9]{1,3})?(?: [A-Za-z0-9._()/+-]{1,60}){0,8}$"  # cpu, cuda:0 NVIDIA H100 80GB HBM3
)
REASON = r"^[a-z0-9_-]{1,24}(?: [a-z0-9_-]{1,24}){0,5}$"  # a code, or a few short words
OPERATOR_REASON = r"^[a-z0-9_ -]{0,80}$"  # why an operator paused, resumed or aborted a job
METHOD = r"^(?:/?anabranch\.v1\.)?(?:[A-Za-z]{1,40}/)?[A-Za-z]{1,40}$"
EXCEPTION = r"^[A-Za-z_][A-Za-z0-9_]{0,63}$"  # a type's name without its module
_PART = r"[A-Za-z0-9_+@=,][A-Za-z0-9._+@=,-]{0,99}"  # of a name in a job's archive
CODE_LINE = (
    rf"^(?:{_PART}/){{0,9}}{_PART}\.py:[0-9]{{1,7}}$"  # inside the archive, so never absolute or upwards
)
CODE_LINE_LENGTH = 110  # characters
RELEASE = r"^[0-9]{1,6}(?:\.[0-9]{1,6}){1,2}(?:[.+-]?[a-z][0-9a-z.+-]{0,24})?$"  # 0.1.0, 0.2.0rc1, 0.2.0.dev3
FEDERATION = rf"^{_DOMAIN}$"
IDENTITY = (
    rf"^spiffe://{_DOMAIN}/(?:aggregator/0|silo/{_LABEL}/agent/[0-9]{{1,9}}|admin/{_LABEL}|reviver/{_LABEL})$"
)
ORIGIN = rf"^{_DOMAIN}(?:/[a-z0-9._-]{{1,64}}){{0,4}}$"
VKEY = rf"^{_DOMAIN}(?:/[a-z0-9._-]{{1,64}}){{0,4}}\+[0-9a-f]{{8}}\+[A-Za-z0-9+/]{{44}}$"


def is_hexfloat(text: str) -> str:
    try:
        canonical.from_hexfloat(text)
    except Refused as error:
        raise ValueError(str(error)) from error
    return text


def is_time(text: str) -> str:
    try:
        canonical.from_utc(text)
    except Refused as error:
        raise ValueError(str(error)) from error
    return text


def _is_optimizer(value: dict[str, str]) -> dict[str, str]:
    name = value.get("name")
    if name is None or not (name.isalnum() and name.isascii()):
        raise ValueError("an optimizer has a name of letters and digits")
    for key, text in value.items():
        if key != "name":
            is_hexfloat(text)
    return value


Id = Annotated[str, Field(pattern=ID)]
Nonce = Annotated[str, Field(pattern=NONCE)]
Word = Annotated[str, Field(pattern=WORD)]
FieldName = Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]{0,47}$")]
Count = Annotated[int, Field(strict=True, ge=0, le=canonical.MAX_INT)]  # versions, sizes, steps, bytes
Time = Annotated[str, Field(pattern=canonical.UTC_TIME), AfterValidator(is_time)]
HexFloat = Annotated[str, Field(pattern=canonical.HEXFLOAT), AfterValidator(is_hexfloat)]
Pin = Annotated[str, Field(pattern=r"^sha256:[0-9a-f]{64}$")]
Ed25519Public = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
Serial = Annotated[str, Field(pattern=r"^[0-9a-f]{1,40}$")]
IdentityUri = Annotated[str, Field(pattern=IDENTITY)]
Origin = Annotated[str, Field(pattern=ORIGIN)]
Split = Annotated[str, Field(pattern=SPLIT)]
Metric = Annotated[str, Field(pattern=METRIC)]
Release = Annotated[str, Field(pattern=RELEASE)]
Device = Annotated[str, Field(pattern=DEVICE, max_length=80)]
ReasonText = Annotated[str, Field(pattern=REASON)]
OperatorReason = Annotated[str, Field(pattern=OPERATOR_REASON)]
Optimizer = Annotated[dict[FieldName, Annotated[str, Field(max_length=40)]], AfterValidator(_is_optimizer)]
