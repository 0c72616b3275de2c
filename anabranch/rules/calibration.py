"""ca2fl: what silent silos would have said is estimated by what they said last.

direction = h + 1/B * sum over the buffer of (delta_i - h_i),  h = 1/N * sum over participants of h_k

(Wang et al., ICLR 2024.) Linear in files that exist already: each delta of the buffer with 1/B, each cached h_k with
1/N - (its silo's updates in the buffer)/B. Where that is zero the file is not read: with one update of every
participant in the buffer this is fedbuff.

B   the updates in the buffer.
N   the silos that approve the job when the buffer closes, whether or not they have ever sent anything. A silo that
    withdrew or was revoked is not among them, and its cached delta counts no more; if it approves again, both do.
h_k the newest delta of participant k that was merged before: of its merged updates the one received last. Zero
    before its first. Of two updates of one silo in a buffer each is calibrated by the h_k from before; the later one
    becomes h_k.
"""

from collections import Counter

from anabranch.rules.buffer import Buffer, Delta, Plan, Term, averaged


def ca2fl(buffer: Buffer) -> Plan:
    new = Counter(one.silo for one in buffer.inputs)
    updates, participants = float(len(buffer.inputs)), float(len(buffer.participants))
    cached = (
        Term(1.0 / participants - new[silo] / updates, Delta(buffer.cached[silo]))
        for silo in sorted(buffer.cached)
    )
    return averaged(
        buffer, [1.0] * len(buffer.inputs), updates, (term for term in cached if term.coefficient)
    )
