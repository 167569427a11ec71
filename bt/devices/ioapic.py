# SPDX-License-Identifier: GPL-2.0-or-later
"""The I/O APIC: 24 interrupt pins, each with a redirection entry that says what to send for it.

Source: Intel 82093AA data sheet (290566). Version 0x11: the end of a level-triggered interrupt
comes as a broadcast of its vector.

A pin is asserted or not; the entry's polarity is kept and has no other effect (the board knows how
its lines are wired). An edge that comes while the entry is masked is lost. Left out: delivery
modes other than fixed and lowest priority (there is no NMI or SMI, and the 8259s have a wire of
their own to the local APIC), and redelivery of edges that the local APIC did not accept.
"""

from __future__ import annotations

from collections.abc import Callable

from bt.machine.bus import Bus

BASE = 0xFEC0_0000
PINS = 24
IDENTITY = 1
_VERSION = (PINS - 1) << 16 | 0x11
_SELECT, _WINDOW = 0x00, 0x10
_REDIRECTION = 0x10

_LOGICAL, _REMOTE_IRR, _LEVEL, _MASKED = 1 << 11, 1 << 14, 1 << 15, 1 << 16
#: Low word: vector, delivery and destination mode, polarity, trigger, mask. High: destination.
_WRITABLE = 0x1AFFF | 0xFF << 56

#: ``deliver(destination, logical, mode, vector, level_triggered) -> accepted``.
Deliver = Callable[[int, bool, int, int, bool], bool]


class IoApic:
    """Pins 0-23 in, messages to the local APIC out; registers at 0xfec00000."""

    def __init__(self, bus: Bus, deliver: Deliver) -> None:
        self._deliver = deliver
        self._select = 0
        self._identity = IDENTITY << 24
        self._asserted = 0
        self._entries = [_MASKED] * PINS
        bus.claim_mmio(self, BASE, 0x1000)

    def set_irq(self, pin: int, level: bool) -> None:
        """Assert or release ``pin`` (0-23)."""
        bit = 1 << pin
        if level == bool(self._asserted & bit):
            return
        self._asserted ^= bit
        if level:
            self._service(pin)

    def eoi(self, vector: int) -> None:
        """The local APIC has served a level-triggered interrupt: a pin still asserted asks again.
        """
        for pin, entry in enumerate(self._entries):
            if entry & _REMOTE_IRR and entry & 0xFF == vector:
                self._entries[pin] = entry & ~_REMOTE_IRR
                self._service(pin)

    def _service(self, pin: int) -> None:
        """``pin`` is asserted, or may be: send its message if nothing stands against it."""
        entry = self._entries[pin]
        if not self._asserted >> pin & 1 or entry & (_MASKED | _REMOTE_IRR):
            return
        level = bool(entry & _LEVEL)
        if self._deliver(entry >> 56, bool(entry & _LOGICAL), entry >> 8 & 7, entry & 0xFF,
                         level) and level:
            self._entries[pin] |= _REMOTE_IRR

    # Registers: a selector and a window, 32 bits each. Narrower writes are dropped.

    def read_mmio(self, gpa: int, size: int) -> int:
        offset = gpa & 0xFF
        if offset & 0xC or size > 4:
            return 0
        value = 0
        if offset & 0xF0 == _SELECT:
            value = self._select
        elif offset & 0xF0 == _WINDOW:
            value = self._read()
        return value >> 8 * (offset & 3)

    def write_mmio(self, gpa: int, size: int, value: int) -> None:
        offset = gpa & 0xFF
        if offset == _SELECT:
            self._select = value & 0xFF
        elif offset == _WINDOW and size == 4:
            self._write(value)

    def _read(self) -> int:
        pin = self._select - _REDIRECTION >> 1
        if 0 <= pin < PINS:
            return self._entries[pin] >> 32 * (self._select & 1) & 0xFFFF_FFFF
        return {0: self._identity, 1: _VERSION, 2: self._identity}.get(self._select, 0)

    def _write(self, value: int) -> None:
        pin = self._select - _REDIRECTION >> 1
        if self._select == 0:
            self._identity = value & 0x0F00_0000
        if not 0 <= pin < PINS:
            return
        shift = 32 * (self._select & 1)
        mask = _WRITABLE & 0xFFFF_FFFF << shift
        entry = self._entries[pin] & ~mask | value << shift & mask
        if not entry & _LEVEL:
            # Going to edge-triggered and back is how Linux ends an interrupt by hand.
            entry &= ~_REMOTE_IRR
        self._entries[pin] = entry
        if entry & _LEVEL:
            self._service(pin)
