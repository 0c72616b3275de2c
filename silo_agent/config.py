"""The agent's directory and the settings of its process (agent.toml).

What a job may do at this site is not a setting: it stands in policy.toml, which `silo_agent.policy` reads.
"""

import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Literal
from urllib.parse import urlsplit

from pydantic import BaseModel, Field, ValidationError, field_validator

from anabranch.errors import Reason, Refused, wording
from anabranch.terms import NOT_TOML, explain

TEMPLATE = """\
# Settings of the Anabranch silo agent. What jobs may do at this site stands in policy.toml.

# server = "fl.example.org:8443"              # only if it differs from federation.json
{proxy}                                       # HTTP CONNECT proxy on the way out
# log = "human"                               # or "json", one object per line; always to standard error
# keep_models = 2                             # model versions kept on disk per job, besides the one in use
# threads = 1                                 # CPU threads of a training process
"""


class Settings(BaseModel, extra="forbid", frozen=True):
    """agent.toml. An unknown key is an error: a misspelt setting must not look as if it held."""

    server: str | None = None  # host:port, when it differs from the join bundle's
    proxy: str | None = None  # http://[user:password@]host:port; default: the environment's
    log: Literal["human", "json"] = "human"
    keep_models: int = Field(default=2, ge=1)  # per job, besides the one in use
    threads: int = Field(default=1, ge=1)  # of a training process, on the CPU

    @field_validator("server")
    @classmethod
    def _host_and_port(cls, server: str | None) -> str | None:
        if server is not None:
            split_address(server)
        return server

    @field_validator("proxy")
    @classmethod
    def _http_proxy(cls, proxy: str | None) -> str | None:
        if proxy is not None:
            url = urlsplit(proxy)
            if url.scheme != "http" or not url.hostname or url.port is None:
                raise ValueError(f"{proxy!r}: write http://host:port; the proxy is only asked to CONNECT")
        return proxy


@dataclass(frozen=True)
class Home:
    """Every path one agent owns. Two agents never share a home: `run` takes a lock in it."""

    path: Path

    @property
    def settings(self) -> Path:
        return self.path / "agent.toml"

    @property
    def policy(self) -> Path:
        return self.path / "policy.toml"

    @property
    def identity(self) -> Path:
        """Keys (0600) and certificates, in a directory of mode 0700."""
        return self.path / "identity"

    @property
    def outbox(self) -> Path:
        return self.path / "outbox"

    @property
    def decisions(self) -> Path:
        return self.path / "decisions"

    @property
    def models(self) -> Path:
        """Base models of the hub, by name and commit. Whole ones: half of one has a name that ends in `.part`."""
        return self.path / "models"

    @property
    def evidence(self) -> Path:
        """What the server signed and could not prove."""
        return self.path / "evidence"

    @property
    def log_view(self) -> Path:
        return self.path / "log-view.json"

    @property
    def lock(self) -> Path:
        return self.path / "run.lock"

    def job(self, job: str) -> Path:
        return self.path / "jobs" / job


def split_address(address: str) -> tuple[str, int]:
    """`"host:port"` or `"[v6]:port"` → host without brackets, port. Raises ValueError."""
    host, colon, port = address.rpartition(":")
    if not colon or not host or not port.isdecimal() or not 0 < int(port) < 65536:
        raise ValueError(f"{address!r} is not host:port")
    return host.removeprefix("[").removesuffix("]"), int(port)


def load_settings(home: Home) -> Settings:
    """Read agent.toml; without the file the defaults hold. Raises Refused(MALFORMED) naming file and key."""
    try:
        text = home.settings.read_text(encoding="utf-8")
    except FileNotFoundError:
        return Settings()
    except (OSError, UnicodeDecodeError) as error:
        raise Refused(
            Reason.MALFORMED,
            f"{home.settings} cannot be read: {wording(error)}; name the agent's directory with --dir, or correct the file",
        ) from error
    try:
        return Settings.model_validate(tomllib.loads(text))
    except ValidationError as error:
        raise Refused(Reason.MALFORMED, f"{home.settings}: {explain(error)}") from error
    except NOT_TOML as error:
        raise Refused(Reason.MALFORMED, f"{home.settings} is not TOML: {error}") from error


def settings_template(proxy: str | None) -> str:
    """A commented agent.toml for a fresh home."""
    line = f'proxy = "{proxy}"' if proxy else '# proxy = "http://proxy.example.org:3128"'
    return TEMPLATE.format(proxy=line)
