"""Pieces of HTML that the page of a run and that of a comparison share."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from html import escape
from typing import Any

from console.drawing import percent
from simulator.reading import duration

DASH = '<td class="zero">–</td>'


def is_share(metric: str, values: Iterable[float]) -> bool:
    """Whether a metric is a share of something, and so is told in per cent."""
    return "loss" not in metric and all(0 <= value <= 1 for value in values)


def value(number: float | None, share: bool) -> str:
    if number is None:
        return "–"
    return percent(number) if share else f"{number:.4g}"


def bounds(found: Mapping[str, Any] | None, share: bool, sign: bool = False) -> str:
    """`0.8 to 1.2`; of differences, with signs and in points."""
    if found is None or found["low"] is None:
        return "–"
    scale, digits = (100, ".1f") if share else (1, ".4g")
    low, high = (f"{scale * found[name]:{'+' if sign else ''}{digits}}" for name in ("low", "high"))
    return f"{low} to {high}".replace("-", "−")


def signed(number: float, share: bool) -> str:
    """A difference: `+1.2`, in points where it is one of shares."""
    return (f"{100 * number:+.1f}" if share else f"{number:+.4g}").replace("-", "−")


def time(seconds: float | None) -> str:
    """Virtual time: `3.2 h`."""
    if seconds is None:
        return "–"
    for unit, length in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= length:
            return f"{seconds / length:.1f} {unit}"
    return f"{seconds:.1f} s"


def table(head: Sequence[str], rows: Iterable[Sequence[str]], kind: str = "") -> str:
    """`head` and cells are HTML; a cell that begins with `<td` is taken as it is."""
    cells = "".join(f"<th>{cell}</th>" for cell in head)
    body = "".join(
        "<tr>" + "".join(c if c.startswith("<td") else f"<td>{c}</td>" for c in row) + "</tr>" for row in rows
    )
    top = f"<thead><tr>{cells}</tr></thead>" if head else ""
    return f'<div class="scroll"><table class="{kind}">{top}<tbody>{body}</tbody></table></div>'


def settings(scenario: Mapping[str, Any], terms: Mapping[str, Any]) -> str:
    """What runs were given, whatever their seed: silos by group, the scenario, the terms."""
    groups = [
        (
            f"{place + 1}",
            str(group["count"]),
            *(_drawn(group[name]) for name in ("train", "download", "upload", "evaluate")),
            _window(group["available"]),
            _dropout(group["dropout"]),
        )
        for place, group in enumerate(scenario["silos"])
    ]
    head = ("group", "silos", "training", "download", "upload", "evaluation", "works", "drops out")
    rest = {key: one for key, one in scenario.items() if key not in ("silos", "seed")}
    silos = table(head, groups) if groups else ""
    return f"""{silos}
<div class="pair">
<div><h3>Scenario</h3>{_flat(rest)}</div>
<div><h3>Terms</h3>{_flat(terms)}</div>
</div>"""


def _flat(document: Mapping[str, Any]) -> str:
    rows = [(escape(key), escape(plain(found))) for key, found in leaves(document)]
    return table((), rows, "settings")


def leaves(document: Mapping[str, Any], before: str = "") -> Iterator[tuple[str, Any]]:
    for key, found in document.items():
        if isinstance(found, Mapping):
            yield from leaves(found, f"{before}{key}.")
        elif found not in (None, [], ()):
            yield f"{before}{key}", found


def plain(found: Any) -> str:
    if isinstance(found, list):
        return ", ".join(map(str, found))
    return (
        f"{found:g}"
        if isinstance(found, float)
        else str(found).lower()
        if found in (True, False)
        else str(found)
    )


def _drawn(given: Mapping[str, Any]) -> str:
    if given["kind"] == "constant" and not given["seconds"]:
        return DASH
    return escape(duration(given))


def _window(given: Mapping[str, Any] | None) -> str:
    if given is None:
        return "always"
    return escape(f"{given['lasts']} from {given['from']}, every {given['every']}")


def _dropout(given: Mapping[str, Any] | None) -> str:
    if given is None:
        return DASH
    return escape(f"{100 * given['probability']:g} %, away {duration(given['away'])}")
