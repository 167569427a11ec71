# SPDX-License-Identifier: GPL-2.0-or-later
"""A machine's devices on a clock that the test turns by hand."""

from __future__ import annotations

from bt.devices.pc import LegacyPc
from bt.machine.bus import Bus
from bt.machine.timers import TimerQueue

MS = 1_000_000
SECOND = 1_000_000_000


class FakeClock:
    def __init__(self) -> None:
        self.ns = 0

    def now_ns(self) -> int:
        return self.ns


class Rig:
    """The whole PC. ``outb``/``inb`` are what the guest does; the rest is the outside."""

    def __init__(self, ram_size: int = 256 << 20, wallclock_s: int = 1_700_000_000) -> None:
        self.clock = FakeClock()
        self.timers = TimerQueue(self.clock)
        self.bus = Bus()
        self.pc = LegacyPc(self.clock, self.timers, self.bus, ram_size, wallclock_s=wallclock_s)
        self.output: list[bytes] = []
        self.resets: list[str] = []
        self.exits: list[int] = []
        self.pc.com1.on_output = self.output.append
        self.pc.power.on_reset = self.resets.append
        self.pc.power.on_exit = self.exits.append

    def inb(self, port: int) -> int:
        return self.bus.read(port, 1)

    def outb(self, value: int, port: int) -> None:
        self.bus.write(port, 1, value)

    def advance(self, ns: int) -> None:
        """Let time pass as a run loop does that is never late."""
        end = self.clock.ns + ns
        while (due := self.timers.next_deadline()) is not None and due <= end:
            self.clock.ns = max(self.clock.ns, due)
            self.timers.run_due()
        self.clock.ns = end

    def oversleep(self, ns: int) -> None:
        """Let time pass with the VMM elsewhere, and catch up at the end."""
        self.clock.ns += ns
        self.timers.run_due()

    def init_pics(self, icw4: int = 0x01, imr: tuple[int, int] = (0, 0)) -> None:
        """What every PC kernel sends: vectors 0x30 and 0x38, cascade on line 2."""
        for first, base, cascade, mask in ((0x20, 0x30, 4, imr[0]), (0xA0, 0x38, 2, imr[1])):
            self.outb(0x11, first)
            for word in (base, cascade, icw4, mask):
                self.outb(word, first + 1)

    def take_irq(self) -> int | None:
        """The vector of a pending interrupt, acknowledged, or None."""
        return self.pc.pic.acknowledge() if self.pc.pic.intr else None

    def eoi(self, slave: bool = False) -> None:
        if slave:
            self.outb(0x20, 0xA0)
        self.outb(0x20, 0x20)
