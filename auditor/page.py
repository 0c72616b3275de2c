"""report.html: the report for people. One file, no script, nothing fetched; it prints, a certificate to a page.

Every text from the log is escaped; nothing of it ever becomes an attribute or a style.
"""

from collections.abc import Iterable, Mapping, Sequence
from html import escape
from importlib.resources import files
from typing import Any

from rich.filesize import decimal

from auditor.words import revived, when, who

Document = Mapping[str, Any]
ROWS = 2000  # of a chapter; report.json has all

CHAPTERS = {
    "approvals": ("Approvals", "What each silo decided about a job, signed with its approver key."),
    "identity": ("Identity", "Who was invited, enrolled, certified and revoked."),
    "admin": (
        "Administration",
        "Jobs submitted, started and changed, models judged and handed out, content no longer kept.",
    ),
    "incidents": (
        "Incidents",
        "Restarts of the server, silos that fell silent, work given back, callers turned away, clocks set back.",
    ),
}


def render(report: Document) -> str:
    """The page."""
    style = files("auditor").joinpath("page.css").read_text("utf-8")
    parts = [_header(report)]
    if report["verified"]:
        parts += [_participation(report), _refusals(report)]
        parts += [_events(title, told, report[name]) for name, (title, told) in CHAPTERS.items()]
        if report["not_understood"]:
            told = "This release does not know these types; a newer auditor may."
            parts.append(_events("Not understood", told, report["not_understood"]))
        parts += [_open(report), _releases(report)]
    parts.append(_footer(report))
    body = "\n".join(parts)
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        "<meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src 'unsafe-inline'\">\n"
        f"<title>Review of {escape(report['log']['origin'])}</title>\n"
        f"<style>\n{style}</style>\n</head>\n<body>\n<main>\n{body}\n</main>\n</body>\n</html>\n"
    )


def _header(report: Document) -> str:
    log, since = report["log"], report["since"]
    verdict = "is verified" if report["verified"] else "is not verified"
    if not report["verified"]:
        period = "Nothing is told of what it says. A report on it has to wait until the reasons below are explained."
    elif since:
        period = f"{since['entries_new']} entries after the {since['size']} already reviewed, up to {when(log['last'])}"
    else:
        period = f"{log['size']} entries, {when(log['first'])} to {when(log['last'])}"
    return f"""<header>
<p class="eyebrow">Anabranch · review of an audit log</p>
<h1>The log {escape(log["origin"] or "of this export")} {verdict}.</h1>
<p class="lead">{escape(period)}</p>
<ul class="seals">{"".join(_seals(report))}</ul>
{_figures(report) if report["verified"] else ""}
{_attention(report)}
{_findings(report)}
</header>"""


def _seals(report: Document) -> Iterable[str]:
    verify, replay, since = report["verify"], report["replay"], report["since"]
    good = report["verified"]
    yield _seal(good, "Log verified offline", "Log not verified")
    if since:
        yield _seal(good, "Continues the log already reviewed", "Not shown to continue the reviewed log")
    if good:
        yield _seal(True, f"{verify['signatures']} signatures of silos", "")
    if replay is None:
        yield '<li class="none">Models not recomputed</li>'
    elif replay["different"] or replay["missing"]:
        yield _seal(False, "", "Replay failed")
    elif replay["digest_only"]:
        yield f'<li class="none">{replay["exact"]} versions recomputed, {len(replay["digest_only"])} on digests only</li>'
    else:
        yield _seal(True, f"{replay['exact']} versions recomputed bit for bit", "")
    if any("--vkey" in note for note in verify["notes"]):
        yield '<li class="none">Key taken from the export</li>'


def _seal(ok: bool, good: str, bad: str) -> str:
    return f"<li>{escape(good)}</li>" if ok else f'<li class="bad">{escape(bad)}</li>'


def _figures(report: Document) -> str:
    rows = report["participation"]
    figures = {
        "entries": report["since"]["entries_new"] if report["since"] else report["log"]["size"],
        "silos took part": len({row["silo"] for row in rows if row["merged"]}),
        "versions made": sum(job["versions_made"] for job in report["jobs"]),
        "updates merged": sum(row["merged"] for row in rows),
        "updates refused": sum(one["count"] for one in report["refusals"]),
        "incidents": len(report["incidents"]),
    }
    cells = "".join(
        f"<div><dd>{value}</dd><dt>{_number(name, value)}</dt></div>" for name, value in figures.items()
    )
    return f'<dl class="figures">{cells}</dl>'


def _number(name: str, count: int) -> str:
    """`updates merged` → `update merged` when it is one."""
    first, _, rest = name.partition(" ")
    one = {"entries": "entry"}.get(first, first.removesuffix("s"))
    return escape(f"{one if count == 1 else first} {rest}".rstrip())


def _attention(report: Document) -> str:
    if not report["attention"]:
        return ""
    lines = "".join(f"<li>{escape(line)}</li>" for line in report["attention"])
    return f'<div class="attention"><h2>To look at</h2><ul>{lines}</ul></div>'


def _findings(report: Document) -> str:
    found = report["verify"]["findings"]
    if not found:
        return ""
    lines = "".join(
        f"<li><b>{escape(one['name'])}</b> {escape(one['where'])}: {escape(one['what'])}</li>"
        for one in found[:ROWS]
    )
    return f'<div class="findings"><h3>Why not</h3><ul>{lines}</ul>{_more(found)}</div>'


def _participation(report: Document) -> str:
    parts = []
    for job in report["jobs"]:
        rows = [row for row in report["participation"] if row["job"] == job["job"]]
        if not rows:
            continue
        told = f"{job['status']} at version {job['head']}"
        closed = (
            f", {job['closed_by_deadline']} of them at their deadline" if job["closed_by_deadline"] else ""
        )
        made = f"{job['versions_made']} versions made{closed}"
        by = f"submitted by {who(job['owner'])}"
        parts.append(f"<h3>{escape(job['job'])}</h3><p>{escape(f'{told}; {made}; {by}.')}</p>")
        if job["revivals"]:
            allowed = ", ".join(job["teaching"]) or "nobody"
            told = f"Revivals: {revived(job['revivals'])}. Silos that allow their models to teach: {allowed}."
            parts.append(f"<p>{escape(told)}</p>")
        heads = (
            "silo",
            "share",
            "leases",
            "received",
            "merged",
            "retired",
            "refused",
            "evaluated",
            "uploaded",
        )
        parts.append(_table((*heads, "late: mean", "most", "absent from|words"), map(_participant, rows)))
    return f"""<section><h2>Participation</h2>
<p class="note">Share: the sum of the coefficients of a silo’s merged updates, of all silos’ together. Late: versions the
model had moved on when an update was merged. Absent from: versions made after waiting for this silo in vain.</p>
{"".join(parts) or "<p>No job was worked on.</p>"}</section>"""


def _participant(row: Document) -> list[str]:
    absent = row["absent"]
    named = ", ".join(map(str, absent[:12])) + (f" and {len(absent) - 12} more" if len(absent) > 12 else "")
    counts = ("leases", "received", "merged", "retired", "refused", "evaluations")
    return [
        f"<td>{escape(row['silo'])}</td>",
        f"<td>{100 * row['share']:.1f} %</td>",
        *(_count(row[name], bad=name == "merged" and not row[name]) for name in counts),
        f"<td>{decimal(row['bytes'])}</td>" if row["bytes"] else '<td class="zero">–</td>',
        *(_late(row[name]) for name in ("staleness_mean", "staleness_max")),
        f'<td class="bad words">{named}</td>' if absent else '<td class="zero words">–</td>',
    ]


def _count(value: int, bad: bool = False) -> str:
    kind = ' class="bad"' if bad else "" if value else ' class="zero"'
    return f"<td{kind}>{value}</td>"


def _late(value: float | None) -> str:
    if value is None:
        return '<td class="zero">–</td>'
    return f"<td>{value:.2f}</td>" if isinstance(value, float) else f"<td>{value}</td>"


def _refusals(report: Document) -> str:
    rows = (
        [
            f"<td>{escape(one['code'])}</td>",
            f'<td class="words">{escape(one["silo"])}</td>',
            _count(one["count"]),
        ]
        for one in report["refusals"]
    )
    away = ", ".join(f"{count} {code}" for code, count in report["turned_away"].items())
    callers = f"<p>Callers turned away before they could send anything: {escape(away)}.</p>" if away else ""
    table = (
        _table(("reason", "silo|words", "updates"), rows)
        if report["refusals"]
        else "<p>No update was refused.</p>"
    )
    return f"<section><h2>Refusals</h2>{table}{callers}</section>"


def _events(title: str, told: str, lines: Sequence[Document]) -> str:
    rows = (
        [
            f"<td>{line['entry']}</td>",
            f"<td>{escape(when(line['time']))}</td>",
            f'<td class="words">{escape(line["what"])}</td>',
        ]
        for line in lines[:ROWS]
    )
    table = _table(("entry", "time", "what|words"), rows, "events") if lines else "<p>None.</p>"
    return f'<section><h2>{title}</h2><p class="note">{told}</p>{table}{_more(lines)}</section>'


def _open(report: Document) -> str:
    rows = (
        [
            f"<td>{one['entry']}</td>",
            f"<td>{escape(one['rule'])}</td>",
            f'<td class="words">{escape(one["what"])}</td>',
        ]
        for one in report["gaps"]["open"][:ROWS]
    )
    told = "What began and had not ended when the log was exported. Nothing is wrong with it."
    found = report["gaps"]["open"]
    table = _table(("entry", "what is open", "what|words"), rows, "events") if found else "<p>Nothing.</p>"
    return f'<section><h2>Still open</h2><p class="note">{told}</p>{table}{_more(found)}</section>'


def _releases(report: Document) -> str:
    pages = "".join(_certificate(report, one) for one in report["releases"])
    return (
        pages
        or "<section><h2>Releases</h2><p>No model was handed out, and no job was completed.</p></section>"
    )


def _certificate(report: Document, one: Document) -> str:
    terms, counts, replay = one["terms"], one["counts"], one["replay"]
    given = "; ".join(
        f"to {who(each['to'])} in entry {each['entry']}, {when(each['time'])}" for each in one["handed_out"]
    )
    facts = {
        "job": one["job"],
        "terms": terms["sha256"],
        "code": terms["code_sha256"],
        "rule": _rule(terms),
        "owner": who(one["owner"]),
        "published": f"entry {one['published']['entry']}, {when(one['published']['time'])}",
        "handed out": given or "not; it is the head of a completed job",
        "made of": f"{counts['updates']} updates in {counts['versions']} versions, "
        f"{counts['closed_by_deadline']} closed at their deadline",
        "evaluated by": ", ".join(counts["evaluated_by"]) or "nobody",
        "not kept": "; ".join(one["not_kept"]) or "nothing was pruned",
        "gave nothing": ", ".join(one["approved_without_updates"]) or "nobody who approved",
        **({"revivals": revived(one["revivals"])} if one["revivals"] else {}),
    }
    listed = "".join(f"<dt>{name}</dt><dd>{escape(text)}</dd>" for name, text in facts.items())
    rows = (
        [
            f"<td>{escape(silo['silo'])}</td>",
            f"<td>{100 * silo['share']:.1f} %</td>",
            f"<td>{silo['updates']}</td>",
            f"<td>{silo['staleness_max']}</td>",
            f'<td class="words">entry {silo["approved_entry"]}, {escape(when(silo["approved_time"] or ""))}</td>',
        ]
        for silo in one["silos"]
    )
    heads = ("silo", "share", "updates", "most versions late", "approved these terms|words")
    kind = {"exact": "", "differs": ' class="bad"', "missing": ' class="bad"'}.get(
        replay["verdict"], ' class="none"'
    )
    return f"""<section class="certificate">
<p class="eyebrow">Certificate of a model</p>
<h2>{escape(one["job"])}, version {one["version"]}: {escape(one["file"])}</h2>
<span class="digest model">sha256 {one["sha256"]}</span>
<ul class="seals"><li>log verified: {escape(report["log"]["origin"])}</li><li{kind}>{escape(replay["words"])}</li></ul>
<dl class="facts">{listed}</dl>
{_table(heads, rows)}
<p class="note">By the audit log {escape(report["log"]["origin"])} of {report["log"]["size"]} entries,
root <span class="digest">{report["log"]["root"]}</span></p>
</section>"""


def _rule(terms: Document) -> str:
    if "strategy" not in terms:
        return "the export does not hold the terms"
    return (
        f"{terms['strategy']}, server optimizer {terms['server_optimizer']}, weighting {terms['weighting']}"
    )


def _footer(report: Document) -> str:
    log, verify = report["log"], report["verify"]
    pruned = sum(one["pruned"] is not None for one in verify["objects"]["digest_only"])
    facts = {
        "log": log["origin"],
        "key": verify["log"]["vkey"],
        "entries": str(log["size"]),
        "root": log["root"],
        "objects": f"{verify['objects']['match']} match their digests; on their digests only: {pruned} pruned, as the log"
        f" says, {len(verify['objects']['digest_only']) - pruned} not in the export",
        "receipts": f"{verify['receipts']} kept by silos are in the log"
        if verify["receipts"]
        else "none given",
    }
    listed = "".join(f'<dt>{name}</dt><dd class="digest">{escape(text)}</dd>' for name, text in facts.items())
    notes = "".join(f"<p>{escape(note)}</p>" for note in verify["notes"])
    return (
        f'<footer><dl class="facts">{listed}</dl>{notes}<p>Times are the server’s, in UTC. Whoever has the export and'
        " the log’s key gets this page again with <code>anabranch-audit report</code>.</p></footer>"
    )


def _table(heads: Sequence[str], rows: Iterable[Sequence[str]], kind: str = "") -> str:
    """A head `name|words` is of a column of words."""
    cells = "".join(
        f'<th class="words">{head.removesuffix("|words")}</th>'
        if head.endswith("|words")
        else f"<th>{head}</th>"
        for head in heads
    )
    body = "".join(f"<tr>{''.join(row)}</tr>" for row in rows)
    named = f' class="{kind}"' if kind else ""
    return f'<div class="scroll"><table{named}><thead><tr>{cells}</tr></thead><tbody>{body}</tbody></table></div>'


def _more(lines: Sequence[Any]) -> str:
    return f'<p class="note">… and {len(lines) - ROWS} more, in report.json</p>' if len(lines) > ROWS else ""
