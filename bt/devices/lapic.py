# SPDX-License-Identifier: GPL-2.0-or-later
"""The local APIC of the one CPU, and with it the last word on what interrupt the CPU takes next.

Source: Intel SDM vol. 3, chapter 10 (section numbers below are its own), as of version 0x14, an
integrated APIC with six local vectors, in xAPIC mode.

Interrupts come from the I/O APIC, as messages of PCI functions, from the APIC's own timer and from
itself. The two 8259s are on pin LINT0. A fixed interrupt waits in IRR until its priority class is
above that of what is in service (ISR) and of the task priority (TPR); an ExtINT on LINT0 goes
around all that, and its vector comes from the 8259s. The CPU sees one line and one acknowledge
cycle, as it does on the board without APICs: :attr:`LocalApic.on_intr` and
:meth:`LocalApic.acknowledge`.

CR8 is bits 7-4 of TPR, and the CPU keeps it: the APIC asks (``read_cr8``) and tells (``write_cr8``)
it, and says which class waits (``watch_cr8``), so that the CPU need call :meth:`LocalApic.recheck`
only when a change of CR8 lets a waiting interrupt through or holds it back.

There is no firmware; the APIC is as firmware leaves it for a kernel that knows none: enabled in
IA32_APIC_BASE, software-disabled, LINT0 an open ExtINT (the virtual wire mode of the MP
specification).

Left out: NMI, SMI, INIT and start-up messages (there is one CPU, and it has no NMI), x2APIC, the
thermal and performance vectors' sources, the arbitration priority register, focus checking.
"""

from __future__ import annotations

from collections.abc import Callable

from bt.machine.bus import Bus
from bt.machine.timers import Clock, Timer, TimerQueue

BASE = 0xFEE0_0000
MSR_APIC_BASE = 0x1B
_BASE_BSP, _BASE_ENABLE = 1 << 8, 1 << 11
_ADDRESS_MASK = ((1 << 40) - 1) & ~0xFFF

VERSION = 5 << 16 | 0x14

ID, VERSION_REG, TPR, APR, PPR, EOI, LDR, DFR, SVR = (
    0x20, 0x30, 0x80, 0x90, 0xA0, 0xB0, 0xD0, 0xE0, 0xF0)
ISR, TMR, IRR, ESR, ICR, ICR_HIGH = 0x100, 0x180, 0x200, 0x280, 0x300, 0x310
LVT_TIMER, LVT_THERMAL, LVT_PERF, LVT_LINT0, LVT_LINT1, LVT_ERROR = (
    0x320, 0x330, 0x340, 0x350, 0x360, 0x370)
TIMER_INITIAL, TIMER_CURRENT, TIMER_DIVIDE = 0x380, 0x390, 0x3E0

FIXED, LOWEST, EXTINT = 0, 1, 7
_LVT_MASKED = 1 << 16
_LEVEL_TRIGGERED = 1 << 15
_PERIODIC = 1 << 17
_LVT_WRITABLE = {LVT_TIMER: 0x300FF, LVT_THERMAL: 0x107FF, LVT_PERF: 0x107FF,
                 LVT_LINT0: 0x1A7FF, LVT_LINT1: 0x1A7FF, LVT_ERROR: 0x100FF}
_SVR_ENABLE = 1 << 8
_ESR_SEND_ILLEGAL, _ESR_RECEIVE_ILLEGAL, _ESR_ILLEGAL_REGISTER = 1 << 5, 1 << 6, 1 << 7

#: The timer counts the crystal that CPUID leaf 0x15 names: 25 MHz.
TICK_NS = 40
#: A periodic timer that is faster skips beats, so that no guest keeps the VMM busy.
MIN_GAP_NS = 50_000


def _top(bits: int) -> int:
    """The highest vector of a set; 0 for none, which no vector can be."""
    return bits.bit_length() - 1 if bits else 0


class LocalApic:
    """Set ``on_intr``, ``on_eoi`` and the three CR8 functions before the guest runs.

    ``ext_acknowledge()`` is the 8259s' acknowledge cycle. ``on_intr(level)`` is called when INTR
    changes, ``on_eoi(vector)`` when a level-triggered interrupt has been served.
    """

    def __init__(self, bus: Bus, clock: Clock, timers: TimerQueue,
                 ext_acknowledge: Callable[[], int]) -> None:
        self._bus = bus
        self._clock = clock
        self._timers = timers
        self._ext_acknowledge = ext_acknowledge
        self.on_intr: Callable[[bool], None] | None = None
        self.on_eoi: Callable[[int], None] | None = None
        self._cr8 = 0
        self.read_cr8: Callable[[], int] = lambda: self._cr8
        self.write_cr8: Callable[[int], None] = self._keep_cr8
        self.watch_cr8: Callable[[int], None] = lambda priority: None
        self.intr = False
        self._lint0 = False
        self._irr = self._isr = self._tmr = 0
        self._tpr = 0
        self._waiting = 0               # priority class of what only TPR may hold back, 0 = none
        self._esr = self._esr_latched = 0
        self._base = BASE | _BASE_BSP | _BASE_ENABLE
        self._enabled = True
        self._software_enabled = False
        self._registers = {ID: 0, LDR: 0, DFR: 0xFFFF_FFFF, SVR: 0xFF, ICR: 0, ICR_HIGH: 0,
                           TIMER_INITIAL: 0, TIMER_DIVIDE: 0}
        self._registers.update(dict.fromkeys(_LVT_WRITABLE, _LVT_MASKED))
        self._registers[LVT_LINT0] = EXTINT << 8
        self._timer: Timer | None = None
        self._timer_start = 0           # ns: when the count was TIMER_INITIAL
        self._tick_ns = 2 * TICK_NS
        bus.claim_mmio(self, BASE, 0x1000)

    def _keep_cr8(self, value: int) -> None:
        self._cr8 = value

    # The CPU's side

    def acknowledge(self) -> int:
        """The interrupt acknowledge cycle: the vector (0-255) to deliver."""
        if self._waiting > self._task_priority() >> 4:
            vector = self._irr.bit_length() - 1
            self._irr ^= 1 << vector
            self._isr |= 1 << vector
            self._update()
            return vector
        if self._ext_wanted():
            return self._ext_acknowledge()
        # It has gone between INTR and this cycle (10.9).
        return self._registers[SVR] & 0xFF

    def recheck(self) -> None:
        """CR8 has crossed the class that was given to ``watch_cr8``."""
        self._update()

    def read_msr(self, index: int) -> int | None:
        """The APIC's MSRs (10.4.4); None for all others."""
        return self._base if index == MSR_APIC_BASE else None

    def write_msr(self, index: int, value: int) -> bool:
        """False: not an MSR of the APIC, or reserved bits (x2APIC mode among them)."""
        if index != MSR_APIC_BASE or value & ~(_ADDRESS_MASK | _BASE_BSP | _BASE_ENABLE):
            return False
        self._bus.unclaim_mmio(self)
        # Once disabled it can come back, in its state after reset; the BSP flag is the hardware's.
        self._base = value & ~_BASE_BSP | _BASE_BSP
        self._enabled = bool(value & _BASE_ENABLE)
        if self._enabled:
            self._bus.claim_mmio(self, value & _ADDRESS_MASK, 0x1000)
        else:
            self._irr = self._isr = self._tmr = 0
            self._stop_timer()
            self._registers[SVR] = 0xFF
            self._software_enabled = False
            for lvt in _LVT_WRITABLE:
                self._registers[lvt] = _LVT_MASKED
        self._update()
        return True

    # The board's side

    def set_lint0(self, level: bool) -> None:
        """The INTR output of the 8259s."""
        rising = level and not self._lint0
        self._lint0 = level
        lvt = self._registers[LVT_LINT0]
        if rising and self._enabled and not lvt & _LVT_MASKED and lvt >> 8 & 7 == FIXED:
            self._accept(lvt & 0xFF, bool(lvt & _LEVEL_TRIGGERED))
        else:
            self._update()

    def deliver(self, destination: int, logical: bool, mode: int, vector: int,
                level_triggered: bool) -> bool:
        """A message from the I/O APIC or a PCI function; whether it was accepted."""
        if not self._is_me(destination, logical) or mode not in (FIXED, LOWEST):
            return False
        return self._accept(vector, level_triggered)

    def message(self, address: int, data: int) -> None:
        """A PCI function's message-signalled interrupt (10.11). Other addresses are dropped."""
        if address >> 20 == BASE >> 20:
            self.deliver(address >> 12 & 0xFF, bool(address & 4), data >> 8 & 7, data & 0xFF,
                         bool(data & _LEVEL_TRIGGERED))

    # Deciding

    def _is_me(self, destination: int, logical: bool) -> bool:
        """Whether a message is for this APIC (10.6.2)."""
        if not self._enabled:
            return False
        if destination == 0xFF:
            return True
        if not logical:
            return destination == self._registers[ID] >> 24
        mine = self._registers[LDR] >> 24
        if self._registers[DFR] >> 28 == 0xF:
            return bool(destination & mine)
        return destination >> 4 == mine >> 4 and bool(destination & mine & 0xF)

    def _accept(self, vector: int, level_triggered: bool = False) -> bool:
        """A fixed interrupt is requested. A software-disabled APIC takes none (10.4.7.2)."""
        if not self._software_enabled:
            return False
        if vector < 16:
            self._error(_ESR_RECEIVE_ILLEGAL)
            return False
        bit = 1 << vector
        self._irr |= bit
        if level_triggered:
            self._tmr |= bit
        else:
            self._tmr &= ~bit
        self._update()
        return True

    def _task_priority(self) -> int:
        cr8 = self.read_cr8()
        if cr8 != self._tpr >> 4:
            self._tpr = cr8 << 4
        return self._tpr

    def _processor_priority(self) -> int:
        """PPR (10.8.3.1)."""
        task, serving = self._task_priority(), _top(self._isr)
        return task if task >> 4 >= serving >> 4 else serving & 0xF0

    def _ext_wanted(self) -> bool:
        lvt = self._registers[LVT_LINT0]
        return self._lint0 and (
            not self._enabled or (not lvt & _LVT_MASKED and lvt >> 8 & 7 == EXTINT))

    def _update(self) -> None:
        """Work out INTR, and what the CPU must watch CR8 for."""
        waiting = 0
        if self._irr and self._software_enabled:
            waiting = self._irr.bit_length() - 1 >> 4
            if self._isr and self._isr.bit_length() - 1 >> 4 >= waiting:
                waiting = 0
        if waiting != self._waiting:
            self._waiting = waiting
            self.watch_cr8(waiting)
        level = waiting > self._task_priority() >> 4 or self._ext_wanted()
        if level != self.intr:
            self.intr = level
            if self.on_intr is not None:
                self.on_intr(level)

    def _error(self, bit: int) -> None:
        self._esr |= bit
        lvt = self._registers[LVT_ERROR]
        # An illegal vector in this entry is no new error: it would never end.
        if not lvt & _LVT_MASKED and lvt & 0xFF >= 16:
            self._accept(lvt & 0xFF)

    # Registers: 32 bits each, at multiples of 16 (10.4.1). What is written otherwise is dropped.

    def read_mmio(self, gpa: int, size: int) -> int:
        offset = gpa & 0xFFF
        if offset & 0xC or size > 4:
            return 0
        return self._read(offset & 0xFF0) >> 8 * (offset & 3)

    def write_mmio(self, gpa: int, size: int, value: int) -> None:
        if size == 4 and not gpa & 0xF:
            self._write(gpa & 0xFF0, value)

    def _read(self, register: int) -> int:
        if register in self._registers:
            return self._registers[register]
        for first, bits in ((ISR, self._isr), (TMR, self._tmr), (IRR, self._irr)):
            if first <= register < first + 0x80:
                return bits >> 2 * (register - first) & 0xFFFF_FFFF
        if register == TPR:
            return self._task_priority()
        if register == PPR:
            return self._processor_priority()
        if register == TIMER_CURRENT:
            return self._current_count()
        if register == ESR:
            return self._esr_latched
        if register == VERSION_REG:
            return VERSION
        if register not in (APR, EOI):
            self._esr |= _ESR_ILLEGAL_REGISTER
        return 0

    def _write(self, register: int, value: int) -> None:
        registers = self._registers
        if register == EOI:
            self._end_of_interrupt()
        elif register == TIMER_INITIAL:
            registers[TIMER_INITIAL] = value
            self._start_timer(value)
        elif register == TPR:
            self._tpr = value & 0xFF
            self.write_cr8(self._tpr >> 4)
            self._update()
        elif register == ICR:
            registers[ICR] = value & 0xCCFFF
            self._send(value)
        elif register in _LVT_WRITABLE:
            value &= _LVT_WRITABLE[register]
            if register == LVT_TIMER:
                value &= ~(1 << 18)     # TSC-deadline mode is not announced
            registers[register] = value if self._software_enabled else value | _LVT_MASKED
            if register == LVT_LINT0:
                self._update()
        elif register == SVR:
            registers[SVR] = value & 0x3FF
            self._software_enabled = bool(value & _SVR_ENABLE)
            if not self._software_enabled:
                for lvt in _LVT_WRITABLE:
                    registers[lvt] |= _LVT_MASKED
            self._update()
        elif register == TIMER_DIVIDE:
            self._change_divider(value & 0xB)
        elif register in (ID, LDR, ICR_HIGH):
            registers[register] = value & 0xFF00_0000
        elif register == DFR:
            registers[DFR] = value | 0x0FFF_FFFF
        elif register == ESR:
            # Writing takes a new sample (10.5.3).
            self._esr_latched, self._esr = self._esr, 0
        elif not (ISR <= register < ESR or register in (VERSION_REG, APR, PPR, TIMER_CURRENT)):
            self._esr |= _ESR_ILLEGAL_REGISTER

    def _end_of_interrupt(self) -> None:
        if not self._isr:
            return
        vector = self._isr.bit_length() - 1
        bit = 1 << vector
        self._isr ^= bit
        if self._tmr & bit and self.on_eoi is not None:
            self.on_eoi(vector)
        self._update()

    def _send(self, command: int) -> None:
        """ICR was written: an interrupt for ourselves, or for CPUs that are not there (10.6.1)."""
        shorthand = command >> 18 & 3
        if shorthand == 0:
            to_me = self._is_me(self._registers[ICR_HIGH] >> 24, bool(command & 1 << 11))
        else:
            to_me = shorthand != 3
        if command >> 8 & 7 not in (FIXED, LOWEST):
            return
        if command & 0xFF < 16:
            self._error(_ESR_SEND_ILLEGAL)
        elif to_me:
            self._accept(command & 0xFF)

    # The timer (10.5.4): nothing counts. The deadline is in the queue, a count is worked out.

    def _start_timer(self, count: int) -> None:
        self._stop_timer()
        if count:
            self._timer_start = self._clock.now_ns()
            self._timer = self._timers.at(self._timer_start + count * self._tick_ns, self._expired)

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _expired(self) -> None:
        lvt = self._registers[LVT_TIMER]
        self._timer = None
        if lvt & _PERIODIC:
            period = self._registers[TIMER_INITIAL] * self._tick_ns
            now = self._clock.now_ns()
            # In its old phase, whatever was missed or skipped.
            beats = max((now - self._timer_start) // period + 1,
                        -(-(now - self._timer_start + MIN_GAP_NS) // period)
                        if period < MIN_GAP_NS else 1)
            self._timer_start += (beats - 1) * period
            self._timer = self._timers.at(self._timer_start + period, self._expired)
        if not lvt & _LVT_MASKED:
            self._accept(lvt & 0xFF)

    def _current_count(self) -> int:
        if self._timer is None:
            return 0
        left = -((self._clock.now_ns() - self._timer.deadline_ns) // self._tick_ns)
        if left <= 0:
            return 0
        # With beats skipped the deadline is more than one period away.
        return (left - 1) % self._registers[TIMER_INITIAL] + 1

    def _change_divider(self, value: int) -> None:
        left = self._current_count()
        self._registers[TIMER_DIVIDE] = value
        step = (value & 3) | value >> 1 & 4
        self._tick_ns = TICK_NS * (1 if step == 7 else 2 << step)
        if self._timer is not None and left:
            # The count goes on from where it is; a period still starts from the initial count.
            self._stop_timer()
            now = self._clock.now_ns()
            self._timer = self._timers.at(now + left * self._tick_ns, self._expired)
            self._timer_start = now - (self._registers[TIMER_INITIAL] - left) * self._tick_ns
