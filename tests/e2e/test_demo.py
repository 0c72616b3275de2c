"""The README's first command, small: five programs, one report, a server killed on the way."""

import json
import subprocess
from pathlib import Path

from tests.e2e.federation import BIN, environment


def test_demo_with_the_server_killed(tmp_path: Path) -> None:
    command = [BIN / "anabranch", "demo", "--silos", "3", "--versions", "8", "--kill-server-at", "3"]
    done = subprocess.run(
        [*map(str, command), "--dir", str(tmp_path / "demo"), "--json"],
        capture_output=True,
        text=True,
        timeout=110,
        env=environment(),
        check=False,
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    report = json.loads(done.stdout)
    assert report["verdict"]["log_verified"]
    assert report["verdict"]["replayed_bit_exactly"]
    assert report["server_killed"]["seconds_until_next_update"] is not None
    sent = [silo["updates"] for silo in report["silos"]]
    assert all(one["sent"] == one["merged"] + one["refused"] + one["retired"] for one in sent)
    page = (tmp_path / "demo" / "report.html").read_text()
    assert "<svg" in page
    assert "http://" not in page.replace("http://www.w3.org", "")
