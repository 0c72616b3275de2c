"""`server.toml`: everything an operator may choose, read once, closed and frozen.

Durations are text like "72h"; addresses are "host:port".
"""

import re
import tomllib
from pathlib import Path
from typing import Annotated

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, model_validator

from anabranch.errors import Reason, Refused
from anabranch.terms import LONGEST, NOT_TOML, Name, explain, seconds
from anabranch.tlog.fields import FEDERATION, ORIGIN
from anabranch.wire.bundle import Address, Trust
from server.core.allocation import Rule, Weight, agree

FILE = "server.toml"
HOUR = 3600.0
HOST = r"\[[0-9a-fA-F:.]+\]|[A-Za-z0-9]([A-Za-z0-9.-]{0,251}[A-Za-z0-9])?"
_CLOSED = ConfigDict(frozen=True, extra="forbid")


def _duration(text: str) -> str:
    if not 0 <= seconds(text) <= LONGEST:
        raise ValueError(f"{text!r} is not a duration between 0 s and ten years")
    return text


def _lifetime(text: str) -> str:
    if not HOUR <= seconds(text) <= 30 * 24 * HOUR:
        raise ValueError("a certificate lives between 1h and 30d")
    return text


def _origin(text: str) -> str:
    if not re.fullmatch(ORIGIN, text):
        raise ValueError("a log is named like a domain, with a path if need be: log.example.org/demo")
    return text


Duration = Annotated[str, AfterValidator(_duration)]
Lifetime = Annotated[str, AfterValidator(_lifetime)]
Bind = Annotated[str, Field(pattern=r"^(\[[0-9a-fA-F:.]+\]|[A-Za-z0-9][A-Za-z0-9.-]*):[0-9]{1,5}$")]


class Listen(BaseModel):
    """Where the server listens. Health is plaintext: keep it inside."""

    model_config = _CLOSED

    server: Bind = "0.0.0.0:7443"
    enrolment: Bind = "0.0.0.0:7444"
    health: Bind = "127.0.0.1:7445"


class Advertise(BaseModel):
    """What join bundles tell silos to dial; the host parts are the names in the server's certificate."""

    model_config = _CLOSED

    server: Address
    enrolment: Address


class Certificates(BaseModel):
    model_config = _CLOSED

    silo: Lifetime = "72h"
    server: Lifetime = "72h"
    admin: Lifetime = "12h"
    reviver: Lifetime = "72h"


class Limits(BaseModel):
    """Of one identity: a silo with all its agents, an administrator, or a reviver."""

    model_config = _CLOSED

    calls_per_second: float = Field(default=50, gt=0)
    calls_burst: int = Field(default=200, ge=1)
    calls_open: int = Field(default=32, ge=2)
    bytes_per_hour: int = Field(default=1 << 40, ge=1 << 20)


class Metrics(BaseModel):
    """What `/metrics` says to whoever reaches the port."""

    model_config = _CLOSED

    name_silos: bool = False  # how fast each of them trains, by its name


class ServerConfig(BaseModel):
    model_config = _CLOSED

    federation: Trust
    log_origin: Annotated[str, Field(pattern=r"^[!-~]{1,256}$"), AfterValidator(_origin)]
    listen: Listen = Listen()
    advertise: Advertise
    certificates: Certificates = Certificates()
    limits: Limits = Limits()
    metrics: Metrics = Metrics()
    drain: Duration = "20s"  # how long running calls may go on after SIGTERM
    allocation: Rule = "turns"  # how jobs that run at once share silos
    shares: dict[Name, Weight] = {}  # with fedast-static: weights by the name of a job; others weigh 1

    @model_validator(mode="after")
    def _ports_differ(self) -> "ServerConfig":
        ports = [address.rpartition(":")[2] for address in self.listen.model_dump().values()]
        if len({port for port in ports if port != "0"}) != len([port for port in ports if port != "0"]):
            raise ValueError("listen: server, enrolment and health need ports of their own")
        return self

    @model_validator(mode="after")
    def _shares_are_read(self) -> "ServerConfig":
        agree(self.allocation, self.shares)
        return self


def read_config(directory: Path) -> ServerConfig:
    """`directory/server.toml`. Raises Refused(MALFORMED) naming the key, NOT_FOUND when there is none."""
    path = directory / FILE
    try:
        return ServerConfig.model_validate(tomllib.loads(path.read_text("utf-8")))
    except FileNotFoundError:
        raise Refused(Reason.NOT_FOUND, f"{path} does not exist; {_instead(directory)}") from None
    except ValidationError as error:
        raise Refused(Reason.MALFORMED, f"{path}: {explain(error)}") from error
    except NOT_TOML as error:
        raise Refused(Reason.MALFORMED, f"{path} is not TOML: {error}") from error


def _instead(directory: Path) -> str:
    """What to do about a directory that is no server's."""
    if (directory / "policy.toml").exists():
        return "this is the directory of a silo agent: name the server's"
    if (directory / "key.pem").exists() and (directory / "federation.json").exists():
        return "this is the directory of an administrator or a reviver: name the server's, which it lies in"
    return "name the directory that anabranch-server init made, or make a federation with it"


def new_config(federation: str, host: str, server: int, enrolment: int, health: int) -> ServerConfig:
    """Settings of a new federation that listens everywhere and is dialled as `host`. Raises Refused(MALFORMED)."""
    if not re.fullmatch(FEDERATION, federation) or re.fullmatch(r"[0-9.]+", federation):
        raise Refused(
            Reason.MALFORMED,
            f"--federation {federation!r}: give it a name like a domain, of lowercase letters, digits, dots and dashes",
        )
    if not re.fullmatch(HOST, host):
        raise Refused(
            Reason.MALFORMED, f"--host {host!r}: give the name or address that silos dial, without a port"
        )
    listen = {
        "server": f"0.0.0.0:{server}",
        "enrolment": f"0.0.0.0:{enrolment}",
        "health": f"127.0.0.1:{health}",
    }
    if len({server, enrolment, health}) < 3:
        raise Refused(
            Reason.MALFORMED, f"ports {server}, {enrolment}, {health}: each of the three needs its own"
        )
    return ServerConfig(
        federation=federation,
        log_origin=f"{federation}/log",
        listen=Listen(**listen),
        advertise=Advertise(server=f"{host}:{server}", enrolment=f"{host}:{enrolment}"),
    )


def write_config(config: ServerConfig) -> str:
    """TOML that `read_config` reads back as `config`, with every default written out."""
    sections = config.model_dump()
    plain = [f"{key} = {_value(value)}" for key, value in sections.items() if not isinstance(value, dict)]
    lines = ["# Settings of this server. Durations: 30s, 10m, 72h, 30d.", *plain]
    for name, section in sections.items():
        if isinstance(section, dict):
            lines += ["", f"[{name}]", *(f"{key} = {_value(value)}" for key, value in section.items())]
    return "\n".join(lines) + "\n"


def _value(value: object) -> str:
    assert isinstance(value, str | int | float)  # strings here are addresses, names and durations: no escapes
    if isinstance(value, bool):
        return str(value).lower()
    return f'"{value}"' if isinstance(value, str) else str(value)
