# SPDX-License-Identifier: GPL-2.0-or-later
"""What a run counted: exits by reason, translation work, time. Nothing here is estimated."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from bt.core.vcpu import PSEUDO_EXITS, Vcpu
from bt.engines import ENGINES
from translator.pvabi import HYPERCALLS
from translator.sensitive import TABLE

_EXCEPTIONS = {
    0: "#DE", 1: "#DB", 3: "#BP", 4: "#OF", 5: "#BR", 6: "#UD", 7: "#NM", 8: "#DF", 10: "#TS",
    11: "#NP", 12: "#SS", 13: "#GP", 14: "#PF", 16: "#MF", 17: "#AC", 19: "#XM",
}
#: Pseudo-exits of the memory unit; all other exits belong to the control unit.
_MEMORY = frozenset({
    "translation", "TLB flush", "code page written", "page became code", "absent memory",
    "page invalidation", "page fault injected",
})
#: Not counted in deterministic runs: Unicorn sizes its TLB by the host's clock (QEMU's cputlb.c,
#: tlb_mmu_resize_locked), so how often it asks again for what it dropped is not the guest's doing.
_HOST_TIMED = frozenset({"translation"})
#: Counters of translation work, which are not exits of the guest.
_TRANSLATION = frozenset({
    "block scanned", "block translated again", "stale trap", "stub installed", "stub taken back",
})


@dataclass
class Stats:
    """Counters of one machine; read them when the machine does not run."""

    vcpu: Vcpu
    engine: str
    deterministic: bool = False
    wall_s: float = 0.0
    translator_python_s: float = 0.0

    @property
    def instructions(self) -> dict[str, int]:
        """Exits by sensitive instruction."""
        rows, _ = self.vcpu.counters()
        return {row.name: rows[row.id] for row in TABLE if rows[row.id]}

    def _pseudo(self) -> dict[str, int]:
        _, pseudo = self.vcpu.counters()
        named = {f"exception {_EXCEPTIONS.get(i, i)}": pseudo[i] for i in range(32) if pseudo[i]}
        named.update({name: pseudo[i] for i, name in PSEUDO_EXITS.items() if pseudo[i]})
        return named

    @property
    def exits(self) -> dict[str, dict[str, int]]:
        """{"control": {reason: count}, "memory": {reason: count}}."""
        pseudo = self._pseudo()
        control = dict(self.instructions)
        control |= {k: v for k, v in pseudo.items() if k not in _MEMORY | _TRANSLATION}
        wanted = _MEMORY - _HOST_TIMED if self.deterministic else _MEMORY
        return {"control": control, "memory": {k: v for k, v in pseudo.items() if k in wanted}}

    @property
    def hypercalls(self) -> dict[str, int]:
        """Hypercalls by name, Xen's or our own; "unknown" counts numbers that are none."""
        calls, table_writes, upcalls = self.vcpu.xen_counters()
        if any(calls):
            from bt.xen.abi import HYPERCALLS as XEN
            named = {XEN.get(i, f"number {i}"): n for i, n in enumerate(calls) if n}
            return named | {"(page-table stores emulated)": table_writes,
                            "(event upcalls)": upcalls}
        if not ENGINES[self.engine].paravirtual:
            return {}
        counts = self.vcpu.hypercalls()
        named = {name: counts[i] for i, name in enumerate(HYPERCALLS) if counts[i]}
        unknown = sum(counts[len(HYPERCALLS):])
        return named | ({"unknown": unknown} if unknown else {})

    def to_json(self) -> dict[str, Any]:
        """Everything, as plain JSON data. Times in seconds."""
        insns, scan_ns, sites = self.vcpu.scanner_counters()
        blocks, ring0 = self.vcpu.audit_counters()
        pseudo = self._pseudo()
        in_translator = scan_ns / 1e9 + self.translator_python_s
        return {
            "engine": self.engine,
            "wall_s": self.wall_s,
            "virtual_s": self.vcpu.now_ns() / 1e9,
            "exits": self.exits,
            "hypercalls": self.hypercalls,
            "translator": {
                "seconds": in_translator,
                "share": in_translator / self.wall_s if self.wall_s else 0.0,
                "instructions_scanned": insns,
                "sites": sites,
                **{k.replace(" ", "_"): pseudo.get(k, 0) for k in sorted(_TRANSLATION)},
            },
            "audit": {"blocks": blocks, "ring0": ring0},
        }
