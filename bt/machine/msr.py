# SPDX-License-Identifier: GPL-2.0-or-later
"""MSR policy for the registers that are not part of the vCPU's running state.

SYSCALL, segment-base, EFER, TSC and SYSENTER registers are emulated in the compiled core. What is
left is answered here; an MSR that is in neither place raises #GP, as on a CPU without it.
"""

from __future__ import annotations

#: MSRs that read as a constant. Numbers from the SDM, vol. 4.
_CONSTANT = {
    0x17: 0,              # IA32_PLATFORM_ID
    0x8B: 0x1 << 32,      # IA32_BIOS_SIGN_ID: microcode revision
    0x1A0: 1,             # IA32_MISC_ENABLE: fast strings
}
#: MSRs whose writes are accepted and forgotten.
_IGNORED = frozenset({0x8B, 0x1A0})


def read_msr(index: int) -> int | None:
    """The value of MSR ``index``; None raises #GP(0)."""
    return _CONSTANT.get(index)


def write_msr(index: int, value: int) -> bool:
    """Whether the write is accepted; False raises #GP(0)."""
    return index in _IGNORED
