# SPDX-License-Identifier: GPL-2.0-or-later
"""What becomes of a sensitive instruction, said from its bytes and those behind it alone.

The translator and the patcher decide with more knowledge: which sites are hot, what jumps where.
So this is what they *can* make of a site, at best.
"""

from __future__ import annotations

from typing import NamedTuple

from translator import pvabi
from translator.patcher import LEFT, Insn, hypercall_stub, inline_stub, touches_memory
from translator.rewriter import StubPlan, ends_region, plan_stub
from translator.scanner import Finding
from translator.stubs import make_stub

#: What `Outcome.bt` and `Outcome.pv` may be.
BT = ("stub", "trap", "untouched")
PV = ("inline", "hypercall", "trap", "untouched")
#: Bytes behind an instruction that a decision may depend on: a jump's, and one instruction's more.
LOOK_AHEAD = 32


class Outcome(NamedTuple):
    """bt: "stub" (a trap until it is hot), "trap" or "untouched", under binary translation.

    pv: what `patcher` makes of it: "inline", "hypercall", "trap" or "untouched".
    """

    bt: str
    pv: str


def outcome(finding: Finding, code: bytes, *, user: bool = False,
            room: int = LOOK_AHEAD) -> Outcome:
    """``code``: what begins with the instruction, LOOK_AHEAD bytes of it are looked at.

    ``user``: the code is meant for ring 3, of which nothing is patched. ``room``: bytes from the
    instruction to the next place that something is known to jump to.
    """
    row = finding.row
    if not (row.user if user else row.kernel):
        return Outcome("untouched", "untouched")
    if user:
        return Outcome("trap", "untouched")
    ahead = bytes(code[:LOOK_AHEAD])
    site = Finding(0, finding.address, row, finding.code, finding.bits)
    # The translator works on a page at a time, the patcher does not: it plans at a page's start.
    free = Finding(0, 0, row, finding.code, finding.bits)
    return Outcome(_under_bt(plan_stub(ahead, site)), _patched(site, plan_stub(ahead, free), room))


def _under_bt(plan: StubPlan | None) -> str:
    """Only 64-bit sites get stubs at run time (bt/machine/stubs.py)."""
    if plan is None or plan.bits != 64:
        return "trap"
    stub = make_stub(plan.row.name, plan.code, plan.absorbed, plan.address,
                     pvabi.WINDOW + pvabi.STUBS_OFFSET, pvabi.WINDOW, plan.bits)
    return "trap" if stub is None else "stub"


def _patched(site: Finding, plan: StubPlan | None, room: int) -> str:
    if site.row.name in LEFT:
        return "untouched"
    if plan is None or site.bits == 16:
        return "trap"
    length = site.length + sum(map(len, plan.absorbed))
    if plan.absorbed and length > room:
        return "trap"
    at = site.address + site.length
    for piece in plan.absorbed:
        if ends_region(piece, 0, site.bits) is None and \
                touches_memory(Insn(at, site.bits, piece, None)):
            return "trap"
        at += len(piece)
    insn = Insn(site.address, site.bits, site.code, site.row)
    window = pvabi.WINDOW if site.bits == 64 else pvabi.WINDOW32
    where = window + pvabi.STUBS_OFFSET
    made = inline_stub(insn, list(plan.absorbed), where, window) or \
        hypercall_stub(insn, list(plan.absorbed), where, window)
    return "trap" if made is None else made[0]
