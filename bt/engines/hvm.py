# SPDX-License-Identifier: GPL-2.0-or-later
"""Engine hvm: the guest's kernel at CPL 0, in the AMD-V guest mode of the CPU underneath."""

from __future__ import annotations

from bt.core import svm
from bt.core import vcpu as core
from bt.engines.base import Engine
from bt.machine.cpu import CpuParts


class HvmEngine(Engine):
    """The core's vCPU with a VMCB."""

    def make_vcpu(self, parts: CpuParts) -> core.Vcpu:
        return core.Vcpu(parts.ram, parts.bus, parts.policy, translate=False,
                         deterministic=parts.deterministic, audit=parts.audit,
                         intercepts=svm.intercepts(parts.intercept or "minimal"))
