# SPDX-License-Identifier: GPL-2.0-or-later
"""Adaptive translation: a trap that proves hot becomes an inline stub.

The core counts; when a site reaches the threshold it offers the code around it here. What a stub
is made of is the translator's business, where it may go is the core's.
"""

from __future__ import annotations

from bt.core.vcpu import VCPU_PAGE_ADDRESS, Vcpu
from translator.sensitive import TABLE

#: Rows that stubs.make_stub has templates for: others are not worth the look.
_CANDIDATES = frozenset({"CLI", "STI", "PUSHF", "POPF", "SWAPGS", "PUSH_SEG", "MOV_FROM_SEG",
                         "MOV_FROM_CR"})


class StubMaker:
    """Makes stubs for one vCPU."""

    def __init__(self) -> None:
        self.vcpu: Vcpu | None = None

    def hot_site(self, gva: int, row: int, bits: int, code: bytes) -> None:
        """The site at ``gva`` (linear) is hot; ``code`` is the guest's code from there on."""
        if TABLE[row].name not in _CANDIDATES or bits != 64:
            return
        from translator.rewriter import plan_stub
        from translator.scanner import scan
        from translator.stubs import MAX_STUB, make_stub

        assert self.vcpu is not None
        found = scan(code, gva, bits)
        if not found or found[0].offset != 0:
            return
        plan = plan_stub(code, found[0])
        address = self.vcpu.stub_address(MAX_STUB)
        if plan is None or address is None:
            return
        stub = make_stub(plan.row.name, plan.code, plan.absorbed, gva, address, VCPU_PAGE_ADDRESS,
                         bits)
        if stub is not None:
            self.vcpu.install_stub(gva, address, stub)
