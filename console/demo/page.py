"""report.html: the same document as report.json, for people."""

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from console.demo.pictures import RAMP_WORDS, speed_word
from console.demo.worth_page import section as revival_section
from console.drawing import page as framed
from console.drawing import percent
from console.words import size

Report = Mapping[str, Any]


def render(report: Report, pictures: Mapping[str, str]) -> str:
    """The page. `pictures` maps river, bars, staleness and, with revival, race to SVG elements."""
    body = "\n".join(
        (
            _header(report),
            revival_section(report, pictures["race"]) if report["revival"] else "",
            _benefit(report, pictures["bars"]),
            _growth(report, pictures["river"]),
            _outage(report),
            _given(report, pictures["staleness"]),
            _trust(report),
            _method(report),
        )
    )
    return framed(f"Anabranch: {report['job']['name']}, {len(report['silos'])} silos", body)


def _header(report: Report) -> str:
    silos, model, verdict = report["silos"], report["model"], report["verdict"]
    low, high = min(s["local"]["all"] for s in silos), max(s["local"]["all"] for s in silos)
    if verdict["federated_beats_every_local_on_all"]:
        alone = percent(low) if len(silos) == 1 else f"{100 * low:.1f} to {percent(high)}"
        title = f"Together {percent(model['accuracy_all'])}. Alone, {alone}."
    else:
        scores = f"{percent(model['accuracy_all'])} against {percent(high)}"
        title = f"The federated model did not beat every silo alone: {scores}."
    seals = (
        (verdict["log_verified"], "Log verified offline", "Log did not verify"),
        (verdict["replayed_bit_exactly"], "Every version recomputed bit for bit", "Replay failed"),
        (
            verdict["every_update_settled_once"],
            "Every update settled exactly once",
            "An update is unaccounted for",
        ),
    )
    marks = "".join(f"<li>{good}</li>" if ok else f'<li class="bad">{bad}</li>' for ok, good, bad in seals)
    return f"""<header>
<p class="eyebrow">Anabranch demo · {escape(report["federation"])}</p>
<h1>{title}</h1>
<p class="lead">{len(silos)} silos trained one classifier of handwritten digits without showing each other a single
record. The figures are the share of digits read correctly, on held-out records of all silos together.</p>
<ul class="seals">{marks}</ul>
{_figures(report)}
</header>"""


def _figures(report: Report) -> str:
    updates = [silo["updates"] for silo in report["silos"]]
    merged, sent = (sum(u[key] for u in updates) for key in ("merged", "sent"))
    rows = (
        (str(report["model"]["version"]), "model versions"),
        (f'{merged} <span class="of">of {sent}</span>', "updates merged; the rest have a stated reason"),
        (str(report["log"]["entries"]), "entries in the audit log"),
        (size(sum(s["bytes"] for s in report["silos"])), "uploaded by all silos, nothing of it a record"),
        (f"{report['job']['seconds']:.0f} s", "from start to last version"),
    )
    return '<dl class="figures">' + "".join(f"<div><dd>{a}</dd><dt>{b}</dt></div>" for a, b in rows) + "</dl>"


def _benefit(report: Report, bars: str) -> str:
    rows = "".join(_benefit_row(silo) for silo in report["silos"])
    wins = [escape(silo["silo"]) for silo in report["silos"] if silo["local_wins_on_own"]]
    if wins:
        told = (
            f"Alone wins at home for {_list(wins)}. That is common when labels are skewed: a model that only needs to"
            " know a few digits finds them easily. A short fine-tune of the federated model on the silo’s own records"
            " is shown beside it."
        )
    else:
        told = "No silo would do better at home with a model of its own."
    return f"""<section>
<h2>Did it help each silo?</h2>
<p>{told}</p>
<figure>{bars}
<ul class="key"><li><i style="background:var(--local)"></i>local only</li>
<li><i style="background:var(--accent)"></i>federated</li></ul></figure>
<div class="scroll"><table>
<thead><tr><th rowspan="2">silo</th><th rowspan="2">records<br>to train on</th>
<th colspan="3"><span>its own held-out records</span></th>
<th colspan="2"><span>all silos’ held-out records</span></th><th rowspan="2" class="words">in words</th></tr>
<tr><th>local</th><th>federated</th><th>fine-tuned</th><th>local</th><th>federated</th></tr></thead>
<tbody>{rows}</tbody></table></div>
</section>"""


def _benefit_row(silo: Mapping[str, Any]) -> str:
    local, federated, tuned = silo["local"], silo["federated"], silo["tuned"]
    own = {"local": local["own"], "federated": federated["own"]}
    if silo["local_wins_on_own"]:
        own["tuned"] = tuned["own"]
    best = max(own.values())
    cells = [_score(own["local"], best), _score(own["federated"], best)]
    cells.append(_score(own["tuned"], best) if "tuned" in own else '<td class="zero">–</td>')
    both = max(local["all"], federated["all"])
    cells += [_score(local["all"], both), _score(federated["all"], both)]
    slow = f'<span class="slow">{speed_word(silo["slowness"])}</span>' if silo["slowness"] != 1 else ""
    return (
        f"<tr><td>{escape(silo['silo'])}{slow}</td><td>{silo['train_records']}</td>{''.join(cells)}"
        f'<td class="words">{_benefit_words(silo)}</td></tr>'
    )


def _benefit_words(silo: Mapping[str, Any]) -> str:
    own = silo["federated"]["own"] - silo["local"]["own"]
    everywhere = _points(silo["federated"]["all"] - silo["local"]["all"])
    if own >= 0:
        at_home = "Equal at home" if own < 0.0005 else f"{_points(own)} at home"
        return f"{at_home}, {everywhere} on everybody’s records."
    return f"Local wins at home by {_points(-own, sign=False)}; {_tuned_words(silo)}. {everywhere} on everybody’s records."


def _tuned_words(silo: Mapping[str, Any]) -> str:
    gain = silo["tuned"]["own"] - silo["local"]["own"]
    after = f"{silo['tuned']['steps']} steps of fine-tuning"
    if abs(gain) < 0.0005:
        return f"{after} bring the federated model level"
    side = "above" if gain > 0 else "below"
    return f"after {after} the federated model is {_points(abs(gain), sign=False)} {side}"


def _growth(report: Report, river: str) -> str:
    strategy = report["job"]["strategy"]
    how = {
        "revive": "A new version leaves as soon as its buffer is full, and silos that are not in it count with what they"
        " sent last, as with ca2fl; what a reviver distilled from their newest models in the meantime is added to it.",
        "fedbuff": "Nobody waits for the slowest silo: a new version leaves as soon as its buffer is full. A slow silo’s"
        " update joins many versions after the one it started from.",
        "fedavg": "Every version waits for all silos, up to a deadline, so the slowest one sets the pace.",
        "fedasync": "Nobody waits: every update makes a version at once, into which the silo’s whole model is mixed.",
        "afl-dw": "Nobody waits: every update makes a version at once, and the later it is the less of it counts.",
        "ca2fl": "Nobody waits for the slowest silo: a new version leaves as soon as its buffer is full, and those that"
        " are not in it count with what they sent last.",
        "fedfix": "A version leaves each second with whatever has arrived; silos that arrive seldom count more.",
        "fedcompass": "Slow silos make fewer steps, so that they arrive together with fast ones.",
    }[strategy]
    key = "".join(
        f'<li><i style="background:var(--stale-{n})"></i>{w}</li>' for n, w in enumerate(RAMP_WORDS)
    )
    return f"""<section>
<h2>How the model grew</h2>
<p>{how} Each bar below is one update, from the moment a silo was handed a version to the receipt for what it made of it.</p>
<figure>{river}
<ul class="key"><li>versions behind when merged:</li>{key}
<li><i style="border:1px solid var(--muted)"></i>retired</li>
<li><b style="color:var(--warn)">×</b> refused</li></ul>
</figure>
</section>"""


def _outage(report: Report) -> str:
    killed = report["server_killed"]
    if killed is None:
        return ""
    after = killed["seconds_until_next_update"]
    lost, twice = killed["of_those_lost"], killed["of_those_merged_twice"]
    clean = not lost and not twice and after is not None
    resumed = (
        f"The agents reconnected by themselves, and the first update after the restart was accepted "
        f"{after:.1f} s after the kill."
        if after is not None
        else "No update was accepted after the restart."
    )
    return f"""<section>
<h2>The server was killed</h2>
<div class="card {"warn" if clean else "bad"}">
<p>At version {killed["version"]} the server process got SIGKILL, {killed["seconds"]:.1f} s into the job, and was started
again; it was ready {killed["seconds_until_ready"]:.1f} s after the kill. {resumed}</p>
<p>Of {killed["acknowledged_before"]} updates acknowledged before the kill, {killed["of_those_merged_once"]} were merged
once, {killed["of_those_retired_or_refused"]} retired or refused with a reason, <strong>{lost} lost and {twice} merged
twice</strong>.</p>
</div>
</section>"""


def _given(report: Report, staleness: str) -> str:
    rows = []
    for silo in report["silos"]:
        updates = silo["updates"]
        mean = "–" if silo["mean_staleness"] is None else f"{silo['mean_staleness']:.1f}"
        cells = "".join(_count(updates[key]) for key in ("sent", "merged", "refused", "retired"))
        rows.append(
            f'<tr><td>{escape(silo["silo"])}<span class="slow">{speed_word(silo["slowness"])}</span></td>{cells}'
            f"<td>{mean}</td><td>{size(silo['bytes'])}</td></tr>"
        )
    reasons = sorted({r for s in report["silos"] for r in s["refused_because"] + s["retired_because"]})
    why = f" Reasons given: {', '.join(f'<code>{escape(r)}</code>' for r in reasons)}." if reasons else ""
    incidents = report["incidents"]
    noticed = f" The log also notes {_incident_words(incidents)}." if incidents else ""
    return f"""<section>
<h2>What each silo gave</h2>
<p>An update is <em>merged</em> into a version, <em>refused</em> with a reason, or <em>retired</em> unused, for example
because the job had ended.{why}{noticed}</p>
<div class="pair">
<div class="scroll" style="margin-top:0"><table><thead>
<tr><th>silo</th><th>sent</th><th>merged</th><th>refused</th><th>retired</th>
<th>mean<br>staleness</th><th>bytes</th></tr></thead><tbody>{"".join(rows)}</tbody></table></div>
<figure>{staleness}<figcaption>Staleness of merged updates, in versions.</figcaption></figure>
</div>
<h3 style="margin-top:34px">Which digits each silo holds</h3>
<p class="note">The demo knows this because it dealt the records. In a real federation nobody but the silo does.</p>
{_heat(report)}
</section>"""


def _heat(report: Report) -> str:
    most = max(max(silo["label_counts"]) for silo in report["silos"]) or 1
    head = "".join(f"<th>{digit}</th>" for digit in range(10))
    rows = ""
    for silo in report["silos"]:
        cells = "".join(
            f'<td style="background:rgba(var(--heat),{0.04 + 0.5 * count / most:.2f})">{count or "·"}</td>'
            for count in silo["label_counts"]
        )
        rows += f"<tr><td>{escape(silo['silo'])}</td>{cells}</tr>"
    head = f"<thead><tr><th></th>{head}</tr></thead>"
    return f'<div class="scroll"><table class="heat">{head}<tbody>{rows}</tbody></table></div>'


def _trust(report: Report) -> str:
    log, model = report["log"], report["model"]
    which = f"{'average at ' if model['selector'] == 'ema' else ''}version {model['version']}"
    approvals = "".join(
        f"<tr><td>{escape(a['silo'])}</td><td>{escape(a['decision'])}</td><td>{a['log_index']}</td></tr>"
        for a in log["approvals"]
    )
    return f"""<section>
<h2>Why believe it?</h2>
<p>The server kept a log in which nothing can be changed or removed unnoticed. What follows was checked from an export of
that log by a separate program, which imports nothing of the server and used no network.</p>
<div class="proof">
{_verdict_card("Nothing was removed or altered", log["verify"])}
{_verdict_card("The model is what the updates make it", log["replay"])}
</div>
<dl class="facts">
<dt>model, {which}</dt><dd class="digest">sha256 {model["sha256"]}</dd>
<dt>terms of the job</dt><dd class="digest">sha256 {report["job"]["terms_sha256"]}</dd>
</dl>
<p>Each silo signed its approval of exactly these terms, which include the digest of the code that ran:</p>
<div class="scroll" style="max-width:30em"><table>
<thead><tr><th>silo</th><th>decision</th><th>log entry</th></tr></thead><tbody>{approvals}</tbody></table></div>
<p class="note">Check it yourself, on any machine, with the export in hand:</p>
<pre>{escape(log["verify"]["command"])}
{escape(log["replay"]["command"])}</pre>
</section>"""


def _verdict_card(title: str, verdict: Mapping[str, Any]) -> str:
    style, mark = ("card", "holds") if verdict["ok"] else ("card bad", "does not hold")
    return f'<div class="{style}"><h3>{title}: {mark}</h3><p>{escape(verdict["words"])}</p></div>'


def _method(report: Report) -> str:
    job, silos, model = report["job"], report["silos"], report["model"]
    steps, tuned = silos[0]["local"]["trained_steps"], silos[0]["tuned"]["steps"]
    what = f"the last version, {model['version']}"
    if model["selector"] == "ema":
        what = (
            f"the running average of versions (EMA) that the job’s terms ask for, as it stands at version"
            f" {model['version']}; that version by itself reaches {percent(model['head_accuracy_all'])}"
        )
    dealt = "so that no two silos have a digit in common, and which silo has which drawn"
    if job["concentration"] is not None:
        dealt = f"by Dirichlet({job['concentration']:g}) over labels"
    return f"""<section>
<h2>How the figures were made</h2>
<p>scikit-learn’s 1 797 digits, dealt {dealt} with seed {job["seed"]};
a quarter of every silo’s records is held out and never trained on. Strategy {escape(job["strategy"])},
{job["local_steps"]} local steps per update.</p>
<p>The comparison favours training alone. Each silo’s own model starts from the same version 0, is trained by the same
loop and gets {steps} steps, at least twice as many as any silo contributed; of all the points it passed, the one best
on the silo’s own held-out records is shown, chosen in hindsight. The federated model is {what}. Nothing of it was
selected. Fine-tuned means {tuned} steps on the silo’s own records from there, also without selection.</p>
<footer>Anabranch {escape(report["release"])} · job <span class="digest">{escape(job["id"])}</span> ·
every figure here is in <code>report.json</code> beside this file.</footer>
</section>"""


def _incident_words(incidents: Sequence[Mapping[str, Any]]) -> str:
    words = {
        "silo.lost": "silo lost", "silo.returned": "silo returned",
        "lease.released": "task given back", "auth.failed": "failed authentication", "silo.revoked": "silo revoked",
    }  # fmt: skip
    counts: dict[str, int] = {}
    for incident in incidents:
        counts[incident["type"]] = counts.get(incident["type"], 0) + 1
    return _list([f"{count} × {words.get(type, type)}" for type, count in counts.items()])


def _score(value: float, best: float) -> str:
    return f"<td><b>{percent(value)}</b></td>" if value == best else f"<td>{percent(value)}</td>"


def _count(value: int) -> str:
    return f"<td>{value}</td>" if value else '<td class="zero">0</td>'


def _points(value: float, sign: bool = True) -> str:
    text = f"{100 * value:+.1f}\u00a0points".replace("-", "−")
    return text if sign else f"{100 * value:.1f} points"


def _list(words: Sequence[str]) -> str:
    return words[0] if len(words) == 1 else ", ".join(words[:-1]) + " and " + words[-1]
