"""`models fetch` with the hub's own library, against a small hub on this machine."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from hashlib import sha256
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import urlsplit

import pytest
import torch
from transformers import BertConfig, BertModel

from anabranch.errors import Reason, Refused
from anabranch.terms import JobTerms, parse_job_file
from silo_agent.approval import Proposal, check_runnable
from silo_agent.check import HOPS, Visit
from silo_agent.config import Home
from silo_agent.messages import OfferedJob
from silo_agent.policy import admit, load_policy, parse_policy

REPO, REVISION = "some-lab/tiny-bert", "0123456789abcdef0123456789abcdef01234567"
POLICY = f'[data.default]\npath = "/"\n[models.tiny]\nhub = "{REPO}"\nrevision = "{REVISION}"\n'
PROGRAM = [sys.executable, "-m", "silo_agent.main"]


class Hub:
    """One model at one commit, by the three requests the library makes; and what goes wrong on the way."""

    def __init__(self, files: dict[str, bytes]) -> None:
        self.files = files
        self.sizes: dict[str, int] = {}  # told instead of the true ones
        self.cuts: dict[str, list[int]] = {}  # bytes after which the connection ends, answer by answer
        self.stalls: dict[str, int] = {}  # bytes after which nothing comes any more
        self.token = ""  # without it files are refused
        self.got: list[tuple[str, str]] = []  # files that were sent, and from where on
        self.stalled, self.over = threading.Event(), threading.Event()
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}"

    def _handler(hub) -> type[BaseHTTPRequestHandler]:
        class Handler(BaseHTTPRequestHandler):
            def do_HEAD(self) -> None:
                hub.answer(self, urlsplit(self.path).path)

            do_GET = do_HEAD

            def log_message(self, *_: object) -> None: ...

        return Handler

    def answer(self, request: BaseHTTPRequestHandler, path: str) -> None:
        listing = re.fullmatch(r"/api/models/(.+)/revision/([^/]+)", path)
        file = re.fullmatch(r"/(.+?)/resolve/([^/]+)/(.+)", path)
        found = listing or file
        if found is None or found[1] != REPO:
            return self.refuse(request, 404, "RepoNotFound")
        if found[2] != REVISION:
            return self.refuse(request, 404, "RevisionNotFound")
        if listing:
            siblings = [
                {"rfilename": name, "size": self.sizes.get(name, len(data))}
                for name, data in sorted(self.files.items())
            ]
            return self.send(
                request, json.dumps({"id": REPO, "sha": REVISION, "siblings": siblings}).encode()
            )
        if self.token and request.headers.get("Authorization") != f"Bearer {self.token}":
            return self.refuse(request, 403, "GatedRepo")
        return self.give(request, found[3])

    def refuse(self, request: BaseHTTPRequestHandler, status: int, code: str) -> None:
        request.send_response(status)
        request.send_header("X-Error-Code", code)
        request.send_header("Content-Length", "0")
        request.end_headers()

    def send(
        self, request: BaseHTTPRequestHandler, data: bytes, start: int = 0, most: int | None = None
    ) -> None:
        request.send_response(206 if start else 200)
        request.send_header("Content-Length", str(len(data) - start))
        request.send_header("ETag", f'"{sha256(data).hexdigest()}"')
        request.send_header("X-Repo-Commit", REVISION)
        if start:
            request.send_header("Content-Range", f"bytes {start}-{len(data) - 1}/{len(data)}")
        request.end_headers()
        if request.command == "GET":
            request.wfile.write(data[start:][:most])
            request.wfile.flush()

    def give(self, request: BaseHTTPRequestHandler, name: str) -> None:
        if request.command == "HEAD":
            return self.send(request, self.files[name])
        asked = request.headers.get("Range", "")
        self.got.append((name, asked))
        start = int(asked.removeprefix("bytes=").rstrip("-") or 0)
        cuts = self.cuts.get(name)
        most = cuts.pop(0) if cuts else self.stalls.get(name)
        self.send(request, self.files[name], start, most)
        if name in self.stalls:
            self.stalled.set()
            self.over.wait(60)
        return None


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """What a repository holds: weights twice, and code."""
    folder = tmp_path_factory.mktemp("model")
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 64}
    BertModel(BertConfig(vocab_size=200, **sizes)).save_pretrained(folder)
    files = {path.name: path.read_bytes() for path in folder.iterdir()}
    extra = {
        "vocab.txt": b"[PAD]\n",
        "1_Pooling/config.json": b"{}",
        "pytorch_model.bin": b"\x80",
        "modeling.py": b"",
    }
    return files | extra


@pytest.fixture
def hub(model: dict[str, bytes]) -> Iterator[Hub]:
    hub = Hub(dict(model))
    thread = threading.Thread(target=hub.server.serve_forever)
    thread.start()
    yield hub
    hub.over.set()
    hub.server.shutdown()
    thread.join()
    hub.server.server_close()


@pytest.fixture
def home(tmp_path: Path) -> Home:
    (tmp_path / "silo").mkdir()
    (tmp_path / "silo" / "policy.toml").write_text(POLICY)
    return Home(tmp_path / "silo")


def environment(home: Home, url: str) -> dict[str, str]:
    """Without proxies and logins of whoever runs the tests."""
    kept = {name: text for name, text in os.environ.items() if not re.search("(?i)proxy|^HF_", name)}
    library = {"HF_ENDPOINT": url, "HF_HOME": str(home.path.parent / "hf"), "HF_HUB_ETAG_TIMEOUT": "1"}
    return kept | library | {"HF_HUB_DOWNLOAD_TIMEOUT": "1"}


def fetch(home: Home, url: str, *more: str) -> subprocess.CompletedProcess[str]:
    argv = [*PROGRAM, "models", "fetch", "--dir", str(home.path), "--json", *more]
    return subprocess.run(
        argv, env=environment(home, url), capture_output=True, text=True, timeout=100, check=False
    )


def refusal(done: subprocess.CompletedProcess[str]) -> tuple[int, str, str]:
    told = json.loads(done.stdout)["error"]
    return done.returncode, told["kind"], told["message"]


def folder(home: Home) -> Path:
    return load_policy(home.policy).models["tiny"].folder


def test_a_model_is_fetched_once_and_holds_nothing_that_could_run(hub: Hub, home: Home) -> None:
    done = fetch(home, hub.url)
    assert done.returncode == 0, done.stderr
    (told,) = json.loads(done.stdout)["models"]
    there = {str(path.relative_to(folder(home))) for path in folder(home).rglob("*") if path.is_file()}
    assert there == {"config.json", "model.safetensors", "vocab.txt", "1_Pooling/config.json"}
    assert (told["name"], told["path"], told["files"], told["already"]) == (
        "tiny",
        str(folder(home)),
        4,
        False,
    )
    assert told["bytes"] == sum(len(hub.files[name]) for name in there)
    loaded = BertModel.from_pretrained(folder(home)).state_dict()
    torch.manual_seed(0)
    made = BertModel(BertConfig.from_pretrained(folder(home))).state_dict()
    assert all(torch.equal(made[name], tensor) for name, tensor in loaded.items())
    again = fetch(home, "http://127.0.0.1:9", "tiny")
    assert json.loads(again.stdout)["models"] == [{**told, "already": True}]


def test_check_and_try_name_the_command_until_it_was_run(hub: Hub, home: Home) -> None:
    visit = Visit(home, lambda: 0.0, policy=load_policy(home.policy))
    with pytest.raises(Exception, match=f"{REPO} at {REVISION} has not been fetched") as failed:
        dict(HOPS)["data"](visit)
    assert failed.value.remedy == "anabranch-silo models fetch tiny"  # type: ignore[attr-defined]
    (home.path / "job.toml").write_text('[job]\nname = "j"\ntask = "t.py:T"\nbase = "tiny"\n')
    argv = [*PROGRAM, "try", str(home.path), "--dir", str(home.path), "--json"]
    tried = subprocess.run(argv, capture_output=True, text=True, check=False)
    assert refusal(tried)[:2] == (1, "refused")
    assert "anabranch-silo models fetch tiny" in refusal(tried)[2]
    assert fetch(home, hub.url).returncode == 0
    assert f"model tiny = {folder(home)}" in str(dict(HOPS)["data"](visit))


def test_a_connection_that_ends_is_taken_up_where_it_ended(hub: Hub, home: Home) -> None:
    large = hub.files["more.safetensors"] = os.urandom(22 << 20)
    hub.cuts["more.safetensors"] = [21 << 20]  # the library writes 10 MiB at a time
    assert fetch(home, hub.url).returncode == 0
    whole, rest = [asked for name, asked in hub.got if name == "more.safetensors"]
    assert whole == ""
    assert int(rest.removeprefix("bytes=").removesuffix("-")) > 0
    assert (folder(home) / "more.safetensors").read_bytes() == large


def test_a_killed_fetch_leaves_no_model_and_the_next_keeps_whole_files(hub: Hub, home: Home) -> None:
    hub.stalls["model.safetensors"] = 1000
    argv = [*PROGRAM, "models", "fetch", "--dir", str(home.path)]
    first = subprocess.Popen(argv, env=environment(home, hub.url) | {"HF_HUB_DOWNLOAD_TIMEOUT": "60"})
    assert hub.stalled.wait(60)
    first.send_signal(signal.SIGKILL)
    first.wait()
    assert not folder(home).exists()
    hub.stalls.clear()
    hub.over.set()
    before = {name for name, _ in hub.got} - {"model.safetensors"}
    hub.got.clear()
    assert fetch(home, hub.url).returncode == 0
    assert before
    assert not before & {name for name, _ in hub.got}
    assert (folder(home) / "model.safetensors").read_bytes() == hub.files["model.safetensors"]
    assert [path.name for path in folder(home).parent.iterdir()] == [REVISION]


def test_a_file_of_another_size_is_no_model(hub: Hub, home: Home) -> None:
    hub.sizes["vocab.txt"] = 5
    code, kind, message = refusal(fetch(home, hub.url))
    assert (code, kind) == (3, "unavailable")
    assert "vocab.txt came with another size" in message
    assert not folder(home).exists()
    hub.sizes.clear()
    assert fetch(home, hub.url).returncode == 0


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        (
            REVISION,
            "f" * 40,
            "`git ls-remote https://huggingface.co/some-lab/tiny-bert` prints what there is",
        ),
        (REPO, "some-lab/other", "the hub has no some-lab/other, or shows it to some"),
    ],
)
def test_what_the_hub_has_not_is_refused(hub: Hub, home: Home, old: str, new: str, said: str) -> None:
    home.policy.write_text(POLICY.replace(old, new))
    code, kind, message = refusal(fetch(home, hub.url))
    assert (code, kind) == (1, "refused")
    assert said in message


def test_pickled_weights_alone_are_refused(hub: Hub, home: Home) -> None:
    del hub.files["model.safetensors"]
    code, kind, message = refusal(fetch(home, hub.url))
    assert (code, kind) == (1, "refused")
    assert "has no .safetensors, only pytorch_model.bin: pickled weights can run code" in message
    assert not hub.got


def test_a_name_that_leads_outside_is_refused(hub: Hub, home: Home) -> None:
    hub.files["../../policy.json"] = b"{}"
    assert "would lie outside" in refusal(fetch(home, hub.url))[2]
    assert not hub.got


def test_a_model_larger_than_the_disk_is_not_begun(hub: Hub, home: Home) -> None:
    hub.sizes["model.safetensors"] = 2**60
    code, kind, message = refusal(fetch(home, hub.url))
    assert (code, kind) == (3, "unavailable")
    assert "needs 1073741824.0 GiB more" in message
    assert not hub.got


def test_a_gated_model_takes_a_token_from_a_file(hub: Hub, home: Home, tmp_path: Path) -> None:
    hub.token = "hf_secret"
    code, kind, message = refusal(fetch(home, hub.url))
    assert (code, kind) == (1, "refused")
    assert "`hf auth login` or --token-file" in message
    (tmp_path / "token").write_text("hf_secret\nof: mine\n")
    done = fetch(home, hub.url, "--token-file", str(tmp_path / "token"))
    assert "does not hold one token and nothing else" in refusal(done)[2]
    assert "hf_secret" not in done.stdout + done.stderr
    (tmp_path / "token").write_text("hf_secret\n")
    done = fetch(home, hub.url, "--token-file", str(tmp_path / "token"))
    assert done.returncode == 0, done.stderr
    assert "hf_secret" not in done.stdout + done.stderr


def test_without_a_network_it_says_so_and_ends(home: Home) -> None:
    done = fetch(home, "http://127.0.0.1:9")
    code, kind, message = refusal(done)
    assert (code, kind) == (3, "unavailable")
    assert f"the hub did not give {REPO} at {REVISION}" in message
    assert "run the same command again" in done.stderr
    assert "anabranch-silo check" not in done.stderr  # which looks at the federation's server


def test_a_hub_that_stays_silent_is_given_up(home: Home) -> None:
    with listening() as (port, _):
        assert refusal(fetch(home, f"http://127.0.0.1:{port}"))[:2] == (3, "unavailable")


def test_a_hub_that_falls_silent_in_a_file_is_given_up(hub: Hub, home: Home) -> None:
    hub.stalls["config.json"] = 0
    assert refusal(fetch(home, hub.url))[:2] == (3, "unavailable")
    assert not folder(home).exists()


def test_the_way_leads_through_the_agents_proxy(home: Home) -> None:
    with listening() as (port, heard):
        home.settings.write_text(f'proxy = "http://127.0.0.1:{port}"\n')
        assert refusal(fetch(home, "https://hub.example"))[:2] == (3, "unavailable")
        assert heard[0].startswith(b"CONNECT hub.example:443")


@contextmanager
def listening() -> Iterator[tuple[int, list[bytes]]]:
    """Takes connections, hears what they begin with, and says nothing."""
    heard: list[bytes] = []
    kept: list[socket.socket] = []

    def listen() -> None:
        while True:
            try:
                kept.append(server.accept()[0])
                heard.append(kept[-1].recv(1000))
            except OSError:
                return

    with socket.create_server(("127.0.0.1", 0)) as server:
        thread = threading.Thread(target=listen)
        thread.start()
        yield server.getsockname()[1], heard
        server.shutdown(socket.SHUT_RDWR)
    thread.join()
    for one in kept:
        one.close()


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (["other"], "binds no model 'other', it binds here, tiny"),
        (["here"], "[models.here] names a path: there is nothing to fetch"),
        (["--token-file", "/nowhere"], "--token-file /nowhere cannot be read"),
    ],
)
def test_what_cannot_be_fetched_is_said(home: Home, more: list[str], said: str) -> None:
    home.policy.write_text(POLICY + '[models.here]\npath = "/srv"\n')
    code, kind, message = refusal(fetch(home, "http://127.0.0.1:9", *more))
    assert (code, kind) == (1, "refused")
    assert said in message


@pytest.mark.parametrize(
    ("written", "said"),
    [
        ("", "say where it is: either path, or hub with revision"),
        (f'path = "/srv"\nhub = "{REPO}"\nrevision = "{REVISION}"', "either path, or hub with revision"),
        (f'path = "/srv"\nrevision = "{REVISION}"', "revision goes with hub"),
        (f'hub = "{REPO}"', f"40 hexadecimal digits.*git ls-remote https://huggingface.co/{REPO} HEAD"),
        (f'hub = "{REPO}"\nrevision = "main"', "a branch can move"),
        (f'hub = "../tiny"\nrevision = "{REVISION}"', "is no model of the hub"),
        (f'hub = "some--lab/tiny"\nrevision = "{REVISION}"', "is no model of the hub"),
    ],
)
def test_a_policy_says_one_place_and_one_commit(written: str, said: str) -> None:
    with pytest.raises(Refused, match=f"(?s)models.tiny.*{said}") as found:
        parse_policy(f"[models.tiny]\n{written}\n", "policy.toml")
    assert found.value.code is Reason.POLICY


def test_another_commit_is_another_folder_in_the_agents_own(home: Home) -> None:
    places = [
        parse_policy(text, str(home.policy)).models["tiny"].folder
        for text in (POLICY, POLICY.replace(REVISION, "f" * 40), POLICY.replace(REPO, "tiny-bert"))
    ]
    assert len(set(places)) == 3
    assert all(home.path in place.parents for place in places)


def test_a_job_is_refused_with_the_command_until_its_base_is_there(home: Home) -> None:
    file = parse_job_file('[job]\nname = "j"\ntask = "t.py:T"\nbase = "tiny"\n')
    terms = JobTerms(file=file, archive_sha256="0" * 64, initial_sha256="1" * 64, manifest_sha256="2" * 64)
    offered = OfferedJob.__new__(OfferedJob)  # what is looked at here does not come from the server
    proposal, rules = Proposal(offered, terms, terms.digest(), None), load_policy(home.policy)
    with pytest.raises(Refused, match="has not been fetched: anabranch-silo models fetch tiny"):
        check_runnable(proposal, rules, Path(sys.executable))
    folder(home).mkdir(parents=True)
    check_runnable(proposal, rules, Path(sys.executable))
    assert admit(rules, terms).base == folder(home)
