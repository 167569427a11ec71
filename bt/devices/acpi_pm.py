# SPDX-License-Identifier: GPL-2.0-or-later
"""ACPI's fixed hardware: power management event and control registers, and the PM timer.

Source: ACPI 6.5, 4.8.3. The ports are where the FADT says (bt/boot/acpi.py).

=====  ==  =================================================================
0x600  2   PM1 status: write 1 to clear
0x602  2   PM1 enable
0x604  2   PM1 control: SCI_EN is always 1 (there is no other mode), a write
           of SLP_EN with the S5 type switches the machine off
0x608  4   timer: 3.579545 MHz, 24 bits
=====  ==  =================================================================

The system control interrupt (SCI) is level-triggered: up while a status bit and its enable bit are
set. The one event is that the timer's top bit has changed; the global lock's and the RTC's can be
enabled and never come. Left out: sleep states other than S5, buttons, general-purpose events.
"""

from __future__ import annotations

from collections.abc import Callable

from bt.machine.bus import Bus
from bt.machine.timers import Clock, Timer, TimerQueue

PM1_EVENT, PM1_CONTROL, PM_TIMER = 0x600, 0x604, 0x608
HZ = 3_579_545
#: SLP_TYP of S5: what the DSDT's \\_S5 says.
S5 = 5
TIMER_STATUS = 1 << 0
_ENABLES = TIMER_STATUS | 1 << 5 | 1 << 10
_SCI_EN, _SLP_EN = 1, 1 << 13
_CONTROL_KEPT = 2 | 7 << 10
_HALF = 1 << 23                 # the top bit changes every so many ticks
_NS = 1_000_000_000


class AcpiPm:
    """``sci(level)`` is the SCI's line. ``on_power_off()`` is called from inside a port write."""

    def __init__(self, bus: Bus, clock: Clock, timers: TimerQueue,
                 sci: Callable[[bool], None]) -> None:
        self._clock = clock
        self._timers = timers
        self._sci = sci
        self.on_power_off: Callable[[], None] | None = None
        self._status = 0
        self._enable = 0
        self._control = _SCI_EN
        self._half = 0                  # top-bit changes that are in the status
        self._timer: Timer | None = None
        bus.claim(self, PM1_EVENT, 4)
        bus.claim(self, PM1_CONTROL, 2)
        bus.claim(_PmTimer(self), PM_TIMER, 4)

    def ticks(self) -> int:
        """The timer's count since power-on, without end."""
        return self._clock.now_ns() * HZ // _NS

    def _settle(self) -> None:
        """Take the timer's top-bit changes so far into the status."""
        half = self.ticks() // _HALF
        if half != self._half:
            self._half = half
            self._status |= TIMER_STATUS

    def _drive(self) -> None:
        self._sci(bool(self._status & self._enable))
        if self._enable & TIMER_STATUS and self._timer is None:
            tick = (self._half + 1) * _HALF
            self._timer = self._timers.at(-(-tick * _NS // HZ), self._carry)

    def _carry(self) -> None:
        self._timer = None
        self._settle()
        self._drive()

    def read_port(self, port: int, size: int) -> int:
        """One byte of a register."""
        self._settle()
        value = self._status | self._enable << 16 | self._control << 32
        return value >> 8 * (port - PM1_EVENT) & 0xFF

    def write_port(self, port: int, size: int, value: int) -> None:
        """One byte of a register; wider writes come low byte first."""
        self._settle()
        shift = 8 * (port & 1)
        value <<= shift
        mask = 0xFF << shift
        if port < PM1_EVENT + 2:
            self._status &= ~(value & TIMER_STATUS)
        elif port < PM1_EVENT + 4:
            self._enable = self._enable & ~mask | value & _ENABLES & mask
        else:
            self._control = _SCI_EN | self._control & ~mask | value & _CONTROL_KEPT & mask
            if value & _SLP_EN and self._control >> 10 & 7 == S5 and \
                    self.on_power_off is not None:
                self.on_power_off()
        self._drive()


class _PmTimer:
    """The timer's port, which is read as a whole."""

    wide = True

    def __init__(self, pm: AcpiPm) -> None:
        self._pm = pm

    def read_port(self, port: int, size: int) -> int:
        return (self._pm.ticks() & 0xFF_FFFF) >> 8 * (port - PM_TIMER)

    def write_port(self, port: int, size: int, value: int) -> None:
        """It is read-only."""
