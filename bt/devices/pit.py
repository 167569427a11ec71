# SPDX-License-Identifier: GPL-2.0-or-later
"""8254 interval timer, and port 0x61, through which a PC gates its channel 2.

Sources: Intel 82C54 data sheet (231244); port 0x61: Intel 82371 (PIIX) data sheet, 3.5.

Nothing here counts. A channel remembers the clock tick at which its count was loaded, and works
out count and output from the time whenever somebody looks. Only channel 0 needs to be awake: the
tick of its output's next rising edge, which raises interrupt line 0, is kept in the timer queue.

Lost ticks: when the VMM comes late, channel 0 gives one edge for all that were missed and goes on
in its old phase, as a PC does whose interrupts were off for too long. A periodic channel 0 faster
than MIN_EDGE_GAP_NS gives only the edges of its phase that are at least so far apart, so that a
guest cannot keep the VMM busy with timer events.

Channel 1 (memory refresh) works, but nothing hangs on it; bit 4 of port 0x61 toggles by itself.
There is no firmware: until the guest programs it, no channel runs. The speaker is silent. The
falling edge of a periodic channel 0 does not take back a request not yet acknowledged.
"""

from __future__ import annotations

from collections.abc import Callable

from bt.machine.bus import Bus
from bt.machine.timers import Clock, Timer, TimerQueue

HZ = 1193182
BASE = 0x40
CONTROL = 0x43
PORT_B = 0x61
MIN_EDGE_GAP_NS = 50_000
# Bit 4 of port 0x61 changes with every refresh: 18 ticks of channel 1 on a PC.
_REFRESH_NS = 15_085
_NS = 1_000_000_000


def tick_of(now_ns: int) -> int:
    """The timer's input clock: whole ticks since power-on at ``now_ns``."""
    return now_ns * HZ // _NS


def time_of(tick: int) -> int:
    """The first nanosecond at which :func:`tick_of` gives ``tick``."""
    return -(-tick * _NS // HZ)


class _Channel:
    """One counter. All times are ticks of the input clock.

    ``count`` is the count being worked off (None: none since the control word), ``start`` the tick
    at which the counting element held it (None: not counting), ``held`` how far it had come when
    it was stopped. ``reload`` is a count written that waits: for the end of the period (modes 2,
    3) or for a trigger (1, 5).
    """

    def __init__(self, gate: bool) -> None:
        self.gate = gate
        self.mode = 0
        self.access = 3
        self.bcd = False
        self.count: int | None = None
        self.start: int | None = None
        self.held = 0
        self.reload: int | None = None
        self._reload_at = 0
        self._reload_start = 0
        self._low: int | None = None  # first byte written of two
        self._read_high = False
        self._latched: int | None = None
        self._status: int | None = None

    # What the channel does over time

    def _elapsed(self, now: int) -> int:
        return self.held if self.start is None else max(0, now - self.start)

    def settle(self, now: int) -> None:
        """Take over a waiting count whose period has begun. First step of everything else."""
        if self.reload is not None and self.mode in (2, 3) and now >= self._reload_at:
            self.count, self.reload = self.reload, None
            self.start = self._reload_start

    def out(self, now: int) -> bool:
        """The output pin."""
        count, elapsed = self.count, self._elapsed(now)
        if self.mode == 0:
            return count is not None and elapsed >= count
        if count is None or (self.start is None and self.mode != 4):
            return True
        if self.mode == 1:
            return elapsed >= count
        if self.mode == 2:
            return elapsed % count != count - 1
        if self.mode == 3:
            return elapsed % count < (count + 1) // 2
        return elapsed != count

    def next_rise(self, now: int, not_before: int) -> int | None:
        """The tick of the output's next rising edge after ``now``, or None.

        Of a periodic output, the first that is also not before ``not_before``.
        """
        count, start = self.count, self.start
        if count is None or start is None:
            return None
        if self.mode in (0, 1):
            rise = start + count
        elif self.mode in (4, 5):
            rise = start + count + 1
        else:
            if self.reload is not None:
                if self._reload_start == self._reload_at:
                    return self._reload_at
                return self._reload_start + self.reload
            after = max(now + 1, not_before, start + 1)
            return start + -(-(after - start) // count) * count
        return rise if rise > now else None

    def value(self, now: int) -> int:
        """What the counting element holds, as the guest reads it."""
        if self.count is None:
            return 0
        elapsed = self._elapsed(now)
        if self.mode == 2:
            value = self.count - elapsed % self.count
        elif self.mode == 3:
            # It steps by two, from an even number, twice per period.
            step, half = elapsed % self.count, (self.count + 1) // 2
            value = (self.count & ~1) - 2 * (step if step < half else step - half)
        else:
            value = self.count - elapsed
        if not self.bcd:
            return value & 0xFFFF
        value %= 10000
        return (value // 1000 << 12 | value // 100 % 10 << 8
                | value // 10 % 10 << 4 | value % 10)

    # What the guest does to it

    def set_mode(self, word: int) -> None:
        """A control word. The output goes to its first level: low in mode 0, else high."""
        mode = word >> 1 & 7
        self.mode = mode - 4 if mode > 5 else mode
        self.access = word >> 4 & 3
        self.bcd = bool(word & 1)
        self.count = self.start = self.reload = None
        self.held = 0
        self._low = self._latched = self._status = None
        self._read_high = False

    def write(self, value: int, now: int) -> bool:
        """A byte of a count. True when it changed what the output will do."""
        if self.access == 1:
            self._load(value, now)
        elif self.access == 2:
            self._load(value << 8, now)
        elif self._low is None:
            self._low = value
            if self.mode != 0:
                return False
            # Mode 0 stops at the first byte, with the output low.
            self.count = self.start = None
        else:
            low, self._low = self._low, None
            self._load(value << 8 | low, now)
        return True

    def _load(self, raw: int, now: int) -> None:
        modulus = 0x10000
        count = raw
        if self.bcd:
            modulus = 10000
            count = sum((raw >> 4 * i & 15) * 10**i for i in range(4)) % modulus
        count = count or modulus
        if self.mode in (1, 5):
            self.reload = count
            return
        if self.mode in (2, 3):
            # 1 is illegal; the shortest period there is takes its place.
            count = max(count, 2)
            if self.count is not None and self.start is not None and now >= self.start:
                self._wait_for_period(count, now)
                return
            self.reload = None
        self.count = count
        self.held = 0
        self.start = now + 1 if self.gate else None

    def _wait_for_period(self, count: int, now: int) -> None:
        """Let a running period end (mode 2) or half a period (mode 3) before ``count`` counts."""
        assert self.count is not None and self.start is not None
        begun = self.start + (now - self.start) // self.count * self.count
        half = begun + (self.count + 1) // 2
        self.reload = count
        if self.mode == 3 and now < half:
            # The low half comes next: as if the new period's high half had just gone by.
            self._reload_at = half
            self._reload_start = half - (count + 1) // 2
        else:
            self._reload_at = self._reload_start = begun + self.count

    def set_gate(self, level: bool, now: int) -> None:
        """The gate pin: pauses modes 0 and 4, restarts 2 and 3, triggers 1 and 5."""
        if level == self.gate:
            return
        self.gate = level
        if self.mode in (1, 5):
            if level and self.reload is not None:
                # Stays for the next trigger.
                self.count = self.reload
                self.start = now + 1
        elif self.count is None:
            return
        elif not level:
            self.held = self._elapsed(now) if self.mode in (0, 4) else 0
            self.start = None
            if self.reload is not None:
                self.count, self.reload = self.reload, None
        elif self.mode in (0, 4):
            self.start = now - self.held
        else:
            self.start = now + 1

    def latch_count(self, now: int) -> None:
        """Hold the count for the next read; a latch not yet read stays."""
        if self._latched is None:
            self._latched = self.value(now)

    def latch_status(self, now: int) -> None:
        """Hold the status byte for the next read; a latch not yet read stays."""
        if self._status is not None:
            return
        null = self.count is None or self.reload is not None or (
            self.start is not None and now < self.start)
        self._status = (self.out(now) << 7 | null << 6 | self.access << 4 | self.mode << 1
                        | self.bcd)

    def read(self, now: int) -> int:
        """The next byte at the channel's port."""
        if self._status is not None:
            status, self._status = self._status, None
            return status
        value = self._latched if self._latched is not None else self.value(now)
        if self.access == 3 and not self._read_high:
            self._read_high = True
            return value & 0xFF
        self._read_high = False
        self._latched = None
        return value & 0xFF if self.access == 1 else value >> 8


class Pit8254:
    """Ports 0x40-0x43 and 0x61. ``irq(level)`` is interrupt line 0."""

    def __init__(self, bus: Bus, clock: Clock, timers: TimerQueue,
                 irq: Callable[[bool], None]) -> None:
        self._clock = clock
        self._timers = timers
        self._irq = irq
        self._timer: Timer | None = None
        self._channels = (_Channel(gate=True), _Channel(gate=True), _Channel(gate=False))
        self._port_b = 0
        bus.claim(self, BASE, 4)
        bus.claim(self, PORT_B, 1)

    def _rearm(self, now: int, not_before: int = 0) -> None:
        """Wake up at channel 0's next rising edge, and only then."""
        if self._timer is not None:
            self._timer.cancel()
        rise = self._channels[0].next_rise(now, not_before)
        self._timer = None if rise is None else self._timers.at(time_of(rise), self._edge)

    def _edge(self) -> None:
        now_ns = self._clock.now_ns()
        now = tick_of(now_ns)
        self._channels[0].settle(now)
        self._irq(False)
        self._irq(True)
        self._timer = None
        self._rearm(now, tick_of(now_ns + MIN_EDGE_GAP_NS))

    def read_port(self, port: int, size: int) -> int:
        """A channel's count or status, or port 0x61; the control port reads as ones."""
        now_ns = self._clock.now_ns()
        now = tick_of(now_ns)
        if port == PORT_B:
            channel = self._channels[2]
            channel.settle(now)
            return (self._port_b | (now_ns // _REFRESH_NS & 1) << 4 | channel.out(now) << 5)
        if port == CONTROL:
            return 0xFF
        channel = self._channels[port & 3]
        channel.settle(now)
        return channel.read(now)

    def write_port(self, port: int, size: int, value: int) -> None:
        """A count, a control word, a latch command, or port 0x61."""
        now = tick_of(self._clock.now_ns())
        if port == PORT_B:
            self._port_b = value & 0x0F
            self._channels[2].settle(now)
            self._channels[2].set_gate(bool(value & 1), now)
        elif port == CONTROL:
            self._control(value, now)
        else:
            channel = self._channels[port & 3]
            channel.settle(now)
            if channel.write(value, now) and port == BASE:
                self._drive(now)

    def _control(self, value: int, now: int) -> None:
        which = value >> 6
        if which == 3:
            for i, channel in enumerate(self._channels):
                if value & 2 << i:
                    channel.settle(now)
                    if not value & 0x20:
                        channel.latch_count(now)
                    if not value & 0x10:
                        channel.latch_status(now)
            return
        channel = self._channels[which]
        channel.settle(now)
        if not value & 0x30:
            channel.latch_count(now)
            return
        channel.set_mode(value)
        if which == 0:
            self._drive(now)

    def _drive(self, now: int) -> None:
        """Channel 0 was reprogrammed: its output may have changed with it."""
        self._irq(self._channels[0].out(now))
        self._rearm(now)
