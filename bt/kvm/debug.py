# SPDX-License-Identifier: GPL-2.0-or-later
"""Breakpoints and steps, which KVM makes of the processor's debug registers.

They are set from outside (KVM_SET_GUEST_DEBUG), and the guest's memory has no trace of them. While
there are any, the guest's own debug registers do nothing. There are four, and KVM stops at one as
often as the guest is entered there: to go on, it takes a step without them.
"""

from __future__ import annotations

from collections.abc import Iterable
from fcntl import ioctl

from bt.kvm import abi

_MAX = 4


class GuestDebug:
    """The debug registers of one vCPU. ``reserved``: how many of them the VMM keeps for itself."""

    def __init__(self, cpu: int, reserved: int = 0) -> None:
        self._cpu = cpu
        self._room = _MAX - reserved
        #: Linear addresses: the VMM's own, and those of whoever looks at the guest.
        self.own: frozenset[int] = frozenset()
        self.wanted: set[int] = set()
        #: Breakpoints are off, and the next instruction is the last.
        self.stepping = False

    def set_own(self, addresses: Iterable[int]) -> None:
        """The VMM's breakpoints, as many as were reserved."""
        self.own = frozenset(addresses)
        self.arm()

    def add(self, gva: int) -> None:
        """One more of the wanted ones. Raises ValueError if there is no room."""
        if gva not in self.wanted:
            if len(self.wanted) == self._room:
                raise ValueError(f"this engine has {self._room} breakpoints")
            self.wanted.add(gva)
            self.arm()

    def remove(self, gva: int) -> None:
        """One less; nothing happens if it is none."""
        if gva in self.wanted:
            self.wanted.discard(gva)
            self.arm()

    def arm(self) -> None:
        """Breakpoints on, stepping off."""
        self.stepping = False
        addresses = sorted(self.own | self.wanted)
        if not addresses:
            self._set(0, [])
            return
        self._set(abi.KVM_GUESTDBG_ENABLE | abi.KVM_GUESTDBG_USE_HW_BP, addresses)

    def step(self) -> None:
        """Breakpoints off; the guest stops after one instruction."""
        self.stepping = True
        self._set(abi.KVM_GUESTDBG_ENABLE | abi.KVM_GUESTDBG_SINGLESTEP, [])

    def _set(self, control: int, addresses: list[int]) -> None:
        # Execution breakpoints, one byte, in the global enable bits (SDM 3B, 17.2.4).
        dr7 = 0x400 | sum(2 << 2 * i for i in range(len(addresses)))
        ioctl(self._cpu, abi.KVM_SET_GUEST_DEBUG, abi.GUEST_DEBUG.pack(
            control, 0, *[*addresses, 0, 0, 0, 0][:4], 0, 0, 0, dr7 if addresses else 0))
