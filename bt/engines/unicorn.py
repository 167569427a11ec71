# SPDX-License-Identifier: GPL-2.0-or-later
"""Engines bt and trap: the compiled core (bt/core), a vCPU on Unicorn."""

from __future__ import annotations

from bt.core import vcpu as core
from bt.engines.base import Engine
from bt.machine.cpu import CpuParts
from bt.machine.stubs import StubMaker


class UnicornEngine(Engine):
    """``translate`` in the row says whether sensitive instructions are rewritten."""

    def make_vcpu(self, parts: CpuParts) -> core.Vcpu:
        """The core's vCPU, with the stub maker it offers hot sites to."""
        stubs = StubMaker()
        vcpu = core.Vcpu(parts.ram, parts.bus, parts.policy, translate=self.info.translate,
                         deterministic=parts.deterministic, audit=parts.audit, hot=parts.hot,
                         hot_site=stubs.hot_site)
        stubs.vcpu = vcpu
        return vcpu
