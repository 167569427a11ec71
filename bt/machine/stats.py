# SPDX-License-Identifier: GPL-2.0-or-later
"""What a run counted: exits by reason, translation work, time. Nothing here is estimated."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from bt.machine.cpu import VirtualCpu


@dataclass
class Stats:
    """Counters of one machine; read them when the machine does not run."""

    vcpu: VirtualCpu
    engine: str
    wall_s: float = 0.0
    reports: list[str] = field(default_factory=list)  # devices stopped because a driver lied

    @property
    def exits(self) -> dict[str, dict[str, int]]:
        """{"control": {reason: count}, "memory": {reason: count}}."""
        control, memory = self.vcpu.exit_counts()
        return {"control": control, "memory": memory}

    @property
    def hypercalls(self) -> dict[str, int]:
        """Hypercalls by name, Xen's or our own; "unknown" counts numbers that are none."""
        return self.vcpu.hypercall_counts()

    @property
    def hardware(self) -> dict[str, dict[str, int]]:
        """{the hardware's name of an exit: {"code": its number, "count": how many}}."""
        return {name: {"code": code, "count": count}
                for name, (code, count) in (self.vcpu.hardware_counts() or {}).items()}

    def to_json(self) -> dict[str, Any]:
        """Everything, as plain JSON data. Times in seconds."""
        translator = self.vcpu.translator_counts()
        blocks, ring0 = self.vcpu.audit_counters()
        return {
            "engine": self.engine,
            "wall_s": self.wall_s,
            "virtual_s": self.vcpu.now_ns() / 1e9,
            "tsc_hz": self.vcpu.tsc_hz,
            "exits": self.exits,
            "hypercalls": self.hypercalls,
            "hardware": self.hardware,
            "translator": {
                "seconds": translator.seconds,
                "share": translator.seconds / self.wall_s if self.wall_s else 0.0,
                "instructions_scanned": translator.instructions,
                "sites": translator.sites,
                **{k.replace(" ", "_"): n for k, n in sorted(translator.events.items())},
            },
            "audit": {"blocks": blocks, "ring0": ring0},
            "reports": list(self.reports),
        }
