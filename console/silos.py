"""The list of silos, for a person and for a program."""

import time
from typing import Any

from rich import box
from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from anabranch.v1 import admin_pb2
from console.words import ago

EXPIRES_SOON = 86400  # seconds; agents renew long before
STYLE = {"active": "green", "invited": "yellow", "revoked": "red"}


def document(silo: admin_pb2.Silo) -> dict[str, Any]:
    """One silo, JSON-ready; times are unix seconds, 0 for never."""
    return {
        "silo": silo.name,
        "status": silo.status,
        "certificate_not_after": silo.certificate_not_after,
        "connected": silo.connected,
        "last_seen": silo.last_seen,
        "release": silo.release,
    }


def table(silos: list[admin_pb2.Silo]) -> RenderableType:
    """One row per silo."""
    if not silos:
        return Text("no silos yet; `anabranch silo invite NAME -o bundle.json` invites one", style="dim")
    rows = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for column in ("silo", "status", "connected", "last seen", "certificate good until", "release"):
        rows.add_column(column)
    for silo in silos:
        rows.add_row(
            Text(silo.name, style="bold"),
            Text(silo.status, style=STYLE.get(silo.status, "")),
            Text("yes", style="green") if silo.connected else Text("no", style="dim"),
            ago(silo.last_seen),
            _expiry(silo.certificate_not_after),
            Text(silo.release or "–"),
        )
    return rows


def _expiry(not_after: int) -> Text:
    if not not_after:
        return Text("–", style="dim")
    left = not_after - time.time()
    style = "red" if left < 0 else "yellow" if left < EXPIRES_SOON else ""
    try:
        return Text(time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime(not_after)), style=style)
    except (OverflowError, ValueError, OSError):
        return Text("no date", style="red")
