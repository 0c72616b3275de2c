"""Things done twice, in the wrong order, or to what is not there, against a server that runs."""

import json
import os
import subprocess

import pytest

import silo_agent.main
from tests.console.test_strangers import FOREIGN, run
from tests.e2e.federation import BIN, Federation, environment

TABLE = """
anabranch job watch nosuch --once                   | 1 | nosuch list the jobs
anabranch job watch nosuch                          | 1 | nosuch list the jobs
anabranch job export nosuch -o m                    | 1 | nosuch list the jobs
anabranch job abort nosuch                          | 1 | nosuch list the jobs
anabranch silo revoke nosuch                        | 1 | nosuch list the silos
anabranch silo invite a -o c.json --ttl 48h         | 1 | one day
anabranch-silo approve nosuch --yes --dir hospital-a | 1 | nosuch `anabranch-silo jobs`
anabranch-silo enrol hospital-a.json --dir elsewhere | 1 | token good once ask for a new bundle
anabranch-silo enrol b.json --dir hospital-a        | 1 | hospital-a belongs to hospital-b another directory
anabranch-silo enrol b.json --dir /proc/x           | 3 | /proc/x check the path
anabranch-silo run --dir hospital-a                 | 1 | another agent hospital-a stop it first
anabranch-server serve server                       | 1 | another server server stop it first
anabranch-server serve other                        | 3 | cannot listen on server.toml another port
"""
LONG_RUNNING = {"run", "serve"}  # they set up their process for themselves: each in one of its own


@pytest.mark.timeout(300)
def test_done_twice_or_in_the_wrong_order(
    federation: Federation, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    federation.enrol("hospital-a")
    federation.agent("hospital-a")
    federation.call("anabranch", "silo", "invite", "hospital-b", "-o", federation.root / "b.json")
    a, b, c = federation.ports
    ports = ["--port", a, "--enrolment-port", b, "--health-port", c]
    federation.call("anabranch-server", "init", federation.root / "other", "--host", "localhost", *ports)
    federation.until(lambda: (federation.silo_dir("hospital-a") / "run.lock").exists(), "the agent runs")

    monkeypatch.chdir(federation.root)
    monkeypatch.setattr(silo_agent.main, "protect_agent", lambda: None)
    monkeypatch.setenv("ANABRANCH_ADMIN", "server/admin/admin")
    for name in os.environ.keys() - environment().keys():
        monkeypatch.delenv(name)
    wrong = []
    for row in TABLE.strip().splitlines():
        command, expected, words = (part.strip() for part in row.split("|"))
        argv = command.split()
        if argv[1] in LONG_RUNNING:
            argv = [str(BIN / argv[0]), *argv[1:], "--json"]
            done = subprocess.run(argv, capture_output=True, text=True, timeout=100, check=False)
            code, out, err = done.returncode, done.stdout, done.stderr
        else:
            code, out, err = run(f"{command} --json", monkeypatch, capsys)
        said = json.loads(out)["error"]["message"]
        missing = [word for word in words.split() if word not in said]
        if code != int(expected) or missing or said not in err or FOREIGN.search(err):
            wrong.append((command, code, missing, err))
    assert wrong == []
    again = ["hospital-a.json", "--dir", "hospital-a"]
    assert federation.call("anabranch-silo", "enrol", *again)["already"] is True
