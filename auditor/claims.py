"""What silos claim of the privacy of their updates: held to the terms, and ε derived again from the claims alone.

That a silo drew the noise it claims, no log can prove. That its claims add up to what the job promises, anybody can.
"""

from anabranch.privacy import Privacy
from anabranch.tlog.claim import PrivacyClaim
from anabranch.tlog.details import UpdateReceived
from anabranch.tlog.entry import Entry
from anabranch.wire.canonical import from_hexfloat
from auditor.broken import require, same
from auditor.history import History, Job
from auditor.renyi import Steps, epsilon
from auditor.report import Derived


class Claims:
    """Reads received updates in order; raises Broken for a claim that cannot be."""

    def __init__(self, history: History) -> None:
        self._history = history

    def received(self, entry: Entry, job: Job, detail: UpdateReceived) -> None:
        terms, claim = job.terms, detail.privacy
        if terms is not None:
            wanted = "a" if terms.file.privacy else "no"
            require(
                (terms.file.privacy is None) == (claim is None),
                f"the terms ask for {wanted} claim of privacy",
            )
        if claim is None:
            return
        rate, noise = from_hexfloat(claim.sample_rate), from_hexfloat(claim.noise_multiplier)
        require(
            0 < rate <= 1 and noise > 0, f"claims a sample rate of {rate} and a noise multiplier of {noise}"
        )
        require(0 < from_hexfloat(claim.delta) < 1, f"claims delta = {from_hexfloat(claim.delta)}")
        earlier = job.claims.setdefault(detail.silo, [])
        if earlier:
            require(
                claim.cycles > earlier[-1].cycles,
                f"claims {claim.cycles} cycles, and silo {detail.silo} had charged {earlier[-1].cycles} before: its ledger "
                "was put back",
            )
        earlier.append(claim)
        if terms is not None and terms.file.privacy is not None:
            _keeps(terms.file.privacy, terms.file.training.local_steps, claim)


def derived(history: History) -> list[Derived]:
    """Of every job and silo with claims, from the log alone."""
    found = []
    for name, job in history.jobs.items():
        promised = job.terms.file.privacy if job.terms else None
        most = job.terms.file.training.local_steps if job.terms else 0
        for silo, claims in sorted(job.claims.items()):
            last = claims[-1]
            delta = from_hexfloat(last.delta)
            found.append(
                Derived(
                    job=name,
                    silo=silo,
                    unit=last.unit,
                    cycles=last.cycles,
                    updates=len(claims),
                    epsilon=epsilon(_charged(claims, most), delta),
                    delta=delta,
                    promised=promised.epsilon if promised else None,
                )
            )
    return found


def _keeps(promised: Privacy, most: int, claim: PrivacyClaim) -> None:
    same("unit", claim.unit, promised.unit, "the job")
    same("delta", from_hexfloat(claim.delta), promised.delta, "the job")
    same("max_grad_norm", from_hexfloat(claim.max_grad_norm), promised.max_grad_norm, "the job")
    require(claim.steps <= most, f"claims {claim.steps} steps, the job takes at most {most}")
    require(
        claim.cycles <= promised.cycles_max,
        f"claims {claim.cycles} cycles, the job allows {promised.cycles_max}",
    )


def _charged(claims: list[PrivacyClaim], most: int) -> list[Steps]:
    """Every cycle that was charged; those whose updates never came count like the worst that did."""
    steps = [
        (from_hexfloat(one.sample_rate), from_hexfloat(one.noise_multiplier), one.steps) for one in claims
    ]
    lost = claims[-1].cycles - len(claims)
    if lost > 0:
        longest = max(most, *(count for _, _, count in steps))
        steps.append((max(rate for rate, _, _ in steps), min(noise for _, noise, _ in steps), lost * longest))
    return steps
