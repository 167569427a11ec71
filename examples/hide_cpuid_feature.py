#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0-or-later
"""Take a feature away from the guest's processor: Linux no longer lists sse4_2.

    python examples/hide_cpuid_feature.py
"""

from __future__ import annotations

import sys

from bt import Exit, Machine

SSE4_2 = 1 << 20  # of leaf 1, ECX (SDM vol. 2, CPUID)

vm = Machine.linux(["grep", "-m1", "flags", "/proc/cpuinfo"], append="quiet")


@vm.on_exit("cpuid", when="after")
def hide(exit: Exit) -> None:
    if exit.leaf == 1:
        eax, ebx, ecx, edx = exit.result
        exit.result = (eax, ebx, ecx & ~SSE4_2, edx)


vm.run(timeout=120)
flags = vm.output.decode()
print(flags, end="")
print("sse4_1:", "sse4_1" in flags, " sse4_2:", "sse4_2" in flags)
sys.exit("sse4_2" in flags)
