# SPDX-License-Identifier: GPL-2.0-or-later
"""MC146818 real-time clock and the PC's CMOS memory, behind index port 0x70 and data port 0x71.

Sources: Motorola MC146818A data sheet; the PC's use of the memory: Ralf Brown's CMOS list.

Time is a start given from outside (seconds since 1970, UTC) plus virtual time, so a deterministic
run has a deterministic date. Registers are worked out when they are read. The periodic, alarm and
update-ended interrupts (line 8) work; timers run only while one of them is enabled. A flag that
nobody has enabled is worked out when register C is read.

Left out: 12-hour mode (register B's bit 1 is stuck at 24 hours), daylight saving, the square wave,
dividers other than 32.768 kHz. Port 0x70's bit 7 (NMI mask) is ignored: there is no NMI.
"""

from __future__ import annotations

import time
from calendar import timegm
from collections.abc import Callable

from bt.machine.bus import Bus
from bt.machine.timers import Clock, Timer, TimerQueue

INDEX = 0x70
DATA = 0x71

SECONDS, MINUTES, HOURS, WEEKDAY, DAY, MONTH, YEAR = 0, 2, 4, 6, 7, 8, 9
ALARMS = (1, 3, 5)  # seconds, minutes, hours
REG_A, REG_B, REG_C, REG_D = 10, 11, 12, 13
CENTURY = 0x32
_TIME = (SECONDS, MINUTES, HOURS, WEEKDAY, DAY, MONTH, YEAR, CENTURY)

A_UIP = 0x80
B_SET, B_PIE, B_AIE, B_UIE, B_BINARY, B_24H = 0x80, 0x40, 0x20, 0x10, 0x04, 0x02
C_IRQF, C_PF, C_AF, C_UF = 0x80, 0x40, 0x20, 0x10

_SECOND = 1_000_000_000
# The chip promises this long between "update in progress" and the update.
_UIP_NS = 244_000
# The days a two-digit year and a century byte can name: 1970 to 9999.
_MAX_SECONDS = timegm((9999, 12, 31, 23, 59, 59))
# Faster than this the periodic interrupt skips beats instead of keeping the VMM busy.
_MIN_PERIOD_GAP_NS = 50_000


class Cmos:
    """Ports 0x70-0x71. ``irq(level)`` is interrupt line 8; ``ram_size`` is in bytes."""

    def __init__(self, bus: Bus, clock: Clock, timers: TimerQueue, irq: Callable[[bool], None],
                 *, ram_size: int, wallclock_s: int) -> None:
        self._clock = clock
        self._timers = timers
        self._irq = irq
        self._index = 0
        self._memory = bytearray(128)
        self._start_s = max(0, min(wallclock_s, _MAX_SECONDS))
        self._flags = 0  # register C
        self._seen_ns = clock.now_ns()  # up to when the flags are worked out
        self._timer: Timer | None = None
        self._memory[REG_A] = 0x26
        self._memory[REG_B] = B_24H
        self._store_ram_size(ram_size)
        bus.claim(self, INDEX, 2)

    def _store_ram_size(self, size: int) -> None:
        """What a PC's firmware leaves here about memory below 4 GB, and the checksum over it."""
        memory = self._memory

        def store(at: int, value: int) -> None:
            memory[at:at + 2] = value.to_bytes(2, "little")

        above_1m = max(0, size - (1 << 20)) >> 10
        store(0x15, min(size >> 10, 640))
        store(0x17, min(above_1m, 0xFFFF))
        store(0x30, min(above_1m, 0xFFFF))
        store(0x34, min(max(0, size - (16 << 20)) >> 16, 0xFFFF))
        checksum = sum(memory[0x10:0x2E])
        memory[0x2E], memory[0x2F] = checksum >> 8 & 0xFF, checksum & 0xFF

    # Time

    def _seconds(self, now_ns: int) -> int:
        return min(self._start_s + now_ns // _SECOND, _MAX_SECONDS)

    def _encode(self, value: int) -> int:
        """A register's byte for a number: BCD unless register B says binary."""
        if self._memory[REG_B] & B_BINARY:
            return value
        return value // 10 << 4 | value % 10

    def _decode(self, byte: int) -> int:
        if self._memory[REG_B] & B_BINARY:
            return byte
        return (byte >> 4) * 10 + (byte & 15)

    def _load_time(self, now_ns: int) -> None:
        """Put the time into the registers; they stand still while register B's SET is on."""
        if self._memory[REG_B] & B_SET:
            return
        t = time.gmtime(self._seconds(now_ns))
        # Sunday is 1. The century byte is BCD in either mode, as firmware leaves it.
        numbers = (t.tm_sec, t.tm_min, t.tm_hour, (t.tm_wday + 1) % 7 + 1, t.tm_mday, t.tm_mon,
                   t.tm_year % 100)
        for register, number in zip(_TIME, numbers, strict=False):
            self._memory[register] = self._encode(number)
        century = t.tm_year // 100
        self._memory[CENTURY] = century // 10 << 4 | century % 10

    def _store_time(self, now_ns: int) -> None:
        """Take the registers as the time now. Registers that name no time are not taken."""
        memory = self._memory
        century = (memory[CENTURY] >> 4) * 10 + (memory[CENTURY] & 15)
        year = century * 100 + self._decode(memory[YEAR])
        month, day, hour, minute, second = (
            self._decode(memory[r]) for r in (MONTH, DAY, HOURS, MINUTES, SECONDS))
        if not (1970 <= year <= 9999 and 1 <= month <= 12 and 1 <= day <= 31 and hour < 24
                and minute < 60 and second < 60):
            return
        self._start_s = timegm((year, month, day, hour, minute, second)) - now_ns // _SECOND

    def _updating(self, now_ns: int) -> bool:
        return (not self._memory[REG_B] & B_SET and self._memory[REG_A] & 0x70 == 0x20
                and now_ns % _SECOND >= _SECOND - _UIP_NS)

    # Interrupts

    def _period_ns(self) -> int:
        """The periodic interrupt's period, 0 for none (register A's rate select)."""
        rate = self._memory[REG_A] & 15
        if rate == 0:
            return 0
        # 1 and 2 are 3.9 and 7.8 ms with the 32.768 kHz divider, the same as 8 and 9.
        return _SECOND * (1 << (rate - 1 if rate > 2 else rate + 6)) // 32768

    def _next_alarm(self, after_s: int) -> int | None:
        """The first second after ``after_s`` that matches the alarm; None if none does."""
        want = []
        for register, limit in zip(ALARMS, (60, 60, 24), strict=True):
            byte = self._memory[register]
            number = None if byte >= 0xC0 else self._decode(byte)  # 0xc0-0xff: any
            if number is not None and number >= limit:
                return None
            want.append(number)
        second, minute, hour = want
        at = after_s + 1
        # Skips whole hours, then whole minutes, then seconds: at most 24 + 60 + 60 steps a pass.
        for _ in range(300):
            if hour is not None and at // 3600 % 24 != hour:
                at = (at // 3600 + 1) * 3600
            elif minute is not None and at // 60 % 60 != minute:
                at = (at // 60 + 1) * 60
            elif second is not None and at % 60 != second:
                at += 1
            else:
                return at
        return None

    def _catch_up(self, now_ns: int) -> None:
        """Set the flags for everything that happened since the last time."""
        seen, self._seen_ns = self._seen_ns, now_ns
        period = self._period_ns()
        if period and now_ns // period != seen // period:
            self._flags |= C_PF
        if not self._memory[REG_B] & B_SET and now_ns // _SECOND != seen // _SECOND:
            self._flags |= C_UF
            alarm = self._next_alarm(self._seconds(seen))
            if alarm is not None and alarm <= self._seconds(now_ns):
                self._flags |= C_AF
        if self._flags & self._memory[REG_B] & (C_PF | C_AF | C_UF):
            self._flags |= C_IRQF

    def _rearm(self, now_ns: int, not_before: int = 0) -> None:
        """Drive the line, and wake up for the next event that is enabled."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._irq(bool(self._flags & C_IRQF))
        enabled = self._memory[REG_B]
        deadlines = []
        period = self._period_ns()
        if enabled & B_PIE and period:
            deadlines.append((max(now_ns, not_before) // period + 1) * period)
        if not enabled & B_SET:
            next_s = now_ns // _SECOND + 1
            if enabled & B_UIE:
                deadlines.append(next_s * _SECOND)
            elif enabled & B_AIE:
                alarm = self._next_alarm(self._seconds(now_ns))
                if alarm is not None:
                    deadlines.append(max(alarm - self._start_s, next_s) * _SECOND)
        if deadlines:
            self._timer = self._timers.at(min(deadlines), self._event)

    def _event(self) -> None:
        now_ns = self._clock.now_ns()
        self._timer = None
        self._catch_up(now_ns)
        self._rearm(now_ns, now_ns + _MIN_PERIOD_GAP_NS)

    # Ports

    def read_port(self, port: int, size: int) -> int:
        """The register or memory byte selected; the index port is write-only."""
        if port == INDEX:
            return 0xFF
        now_ns = self._clock.now_ns()
        index = self._index
        if index == REG_A:
            return self._memory[REG_A] | (A_UIP if self._updating(now_ns) else 0)
        if index == REG_C:
            self._catch_up(now_ns)
            flags, self._flags = self._flags, 0
            self._irq(False)
            return flags
        if index == REG_D:
            return 0x80  # the battery is good
        if index in _TIME:
            self._load_time(now_ns)
        return self._memory[index]

    def write_port(self, port: int, size: int, value: int) -> None:
        """The index, or the byte it selects."""
        if port == INDEX:
            self._index = value & 0x7F
            return
        index, memory = self._index, self._memory
        if index in (REG_C, REG_D):
            return
        now_ns = self._clock.now_ns()
        if index in _TIME:
            self._load_time(now_ns)
            memory[index] = value
            if not memory[REG_B] & B_SET:
                self._store_time(now_ns)
        elif index == REG_A or index == REG_B or index in ALARMS:
            self._catch_up(now_ns)
            self._load_time(now_ns)
            was_set = memory[REG_B] & B_SET
            if index == REG_B:
                value |= B_24H
                if value & B_SET:
                    value &= ~B_UIE  # the data sheet: SET clears UIE
            memory[index] = value & 0x7F if index == REG_A else value
            if was_set and not memory[REG_B] & B_SET:
                self._store_time(now_ns)
            self._update_irqf()
        else:
            memory[index] = value
            return
        self._rearm(now_ns)

    def _update_irqf(self) -> None:
        """IRQF is the OR of the flags that are enabled; a write to register B changes it."""
        self._flags &= ~C_IRQF
        if self._flags & self._memory[REG_B] & (C_PF | C_AF | C_UF):
            self._flags |= C_IRQF
