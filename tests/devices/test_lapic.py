# SPDX-License-Identifier: GPL-2.0-or-later
"""The local APIC against SDM vol. 3, chapter 10, with the 8259s on LINT0; and hostile accesses."""

from __future__ import annotations

import pytest
from devicerig import MS, FakeClock
from hypothesis import given, settings
from hypothesis import strategies as st

from bt.devices import lapic as la
from bt.devices.lapic import LocalApic
from bt.machine.bus import Bus
from bt.machine.timers import TimerQueue

BASE = la.BASE


class Rig:
    """One APIC, software-enabled, with a CPU that keeps CR8."""

    def __init__(self, enabled=True):
        self.bus = Bus()
        self.clock = FakeClock()
        self.timers = TimerQueue(self.clock)
        self.ext = []
        self.apic = LocalApic(self.bus, self.clock, self.timers, self._ext)
        self.intr = []
        self.eois = []
        self.cr8 = 0
        self.watched = []
        self.apic.on_intr = self.intr.append
        self.apic.on_eoi = self.eois.append
        self.apic.read_cr8 = lambda: self.cr8
        self.apic.write_cr8 = self._write_cr8
        self.apic.watch_cr8 = self.watched.append
        if enabled:
            self.w(la.SVR, 0x1FF)
            self.w(la.LVT_LINT0, 1 << 16)

    def _ext(self):
        return self.ext.pop()

    def _write_cr8(self, value):
        self.cr8 = value

    def mov_cr8(self, value):
        """What the core does: call when the watched class is crossed."""
        old, self.cr8 = self.cr8, value
        watch = self.watched[-1] if self.watched else 0
        if watch and (watch > old) != (watch > value):
            self.apic.recheck()

    def r(self, register):
        return self.bus.read_mmio(BASE + register, 4)

    def w(self, register, value):
        self.bus.write_mmio(BASE + register, 4, value)

    def take(self):
        return self.apic.acknowledge() if self.apic.intr else None

    def advance(self, ns):
        end = self.clock.ns + ns
        while (due := self.timers.next_deadline()) is not None and due <= end:
            self.clock.ns = max(self.clock.ns, due)
            self.timers.run_due()
        self.clock.ns = end

    def bits(self, first):
        value = sum(self.r(first + 16 * i) << 32 * i for i in range(8))
        return {i for i in range(256) if value >> i & 1}


@pytest.fixture
def rig():
    return Rig()


def fixed(rig, vector, level=False):
    return rig.apic.deliver(0, False, la.FIXED, vector, level)


def test_after_reset_and_firmware():
    rig = Rig(enabled=False)
    assert rig.apic.read_msr(0x1B) == 0xFEE00900
    assert rig.r(la.VERSION_REG) == 0x00050014 and rig.r(la.ID) == 0
    assert rig.r(la.SVR) == 0xFF and rig.r(la.DFR) == 0xFFFFFFFF and rig.r(la.LVT_LINT0) == 0x700
    for lvt in (la.LVT_TIMER, la.LVT_THERMAL, la.LVT_PERF, la.LVT_LINT1, la.LVT_ERROR):
        assert rig.r(lvt) == 0x10000
    # Virtual wire: a kernel that knows no APIC has its 8259s.
    rig.ext = [0x31]
    rig.apic.set_lint0(True)
    assert rig.take() == 0x31
    assert not fixed(rig, 0x40)


def test_highest_vector_first_and_nesting_by_class(rig):
    for vector in (0x41, 0x52, 0x4F):
        assert fixed(rig, vector)
    assert rig.bits(la.IRR) == {0x41, 0x4F, 0x52}
    assert rig.take() == 0x52
    assert rig.bits(la.ISR) == {0x52} and rig.r(la.PPR) == 0x50
    assert rig.take() is None                     # class 4 waits
    fixed(rig, 0x5F)
    assert rig.take() is None                     # so does the same class
    fixed(rig, 0x60)
    assert rig.take() == 0x60 and rig.r(la.PPR) == 0x60
    rig.w(la.EOI, 0)
    assert rig.bits(la.ISR) == {0x52} and rig.take() is None
    rig.w(la.EOI, 0)
    assert rig.take() == 0x5F
    rig.w(la.EOI, 0)
    assert rig.take() == 0x4F
    assert rig.eois == []


def test_two_requests_of_one_vector_are_one(rig):
    fixed(rig, 0x41)
    fixed(rig, 0x41)
    assert rig.take() == 0x41
    fixed(rig, 0x41)                              # one in service, one waits
    rig.w(la.EOI, 0)
    assert rig.take() == 0x41
    rig.w(la.EOI, 0)
    assert rig.take() is None


def test_level_triggered_eoi_is_broadcast(rig):
    fixed(rig, 0x41, level=True)
    fixed(rig, 0x31)
    assert rig.bits(la.TMR) == {0x41}
    assert rig.take() == 0x41
    rig.w(la.EOI, 0)
    assert rig.eois == [0x41]
    assert rig.take() == 0x31
    rig.w(la.EOI, 0)
    assert rig.eois == [0x41]


def test_task_priority_and_cr8_are_one(rig):
    rig.w(la.TPR, 0x4F)
    assert rig.cr8 == 4 and rig.r(la.TPR) == 0x4F
    fixed(rig, 0x45)
    assert rig.take() is None and rig.watched[-1] == 4
    rig.mov_cr8(3)
    assert rig.r(la.TPR) == 0x30 and rig.r(la.PPR) == 0x30
    assert rig.intr == [True]
    rig.mov_cr8(9)
    assert rig.intr == [True, False]
    rig.mov_cr8(0)
    assert rig.take() == 0x45 and rig.watched[-1] == 0
    # What CR8 could not let through need not be watched for.
    fixed(rig, 0x33)
    assert rig.watched[-1] == 0
    rig.w(la.EOI, 0)
    assert rig.watched[-1] == 3


def test_spurious_vector(rig):
    fixed(rig, 0x41)
    rig.w(la.SVR, 0x1E7)
    assert rig.apic.intr
    rig.w(la.TPR, 0xF0)
    assert not rig.apic.intr
    assert rig.apic.acknowledge() == 0xE7         # the CPU had begun its acknowledge cycle
    assert rig.bits(la.ISR) == set() and rig.bits(la.IRR) == {0x41}


def test_extint_goes_around_priorities(rig):
    rig.w(la.LVT_LINT0, 0x700)
    rig.w(la.TPR, 0xFF)
    rig.ext = [0x77]
    rig.apic.set_lint0(True)
    assert rig.take() == 0x77 and rig.bits(la.ISR) == set()
    rig.w(la.LVT_LINT0, 0x10700)
    assert not rig.apic.intr


def test_lint0_as_a_fixed_interrupt(rig):
    rig.w(la.LVT_LINT0, 0x39)
    rig.apic.set_lint0(True)
    rig.apic.set_lint0(True)
    assert rig.take() == 0x39


@pytest.mark.parametrize("command, wanted", [
    (0x40041, 0x41), (0x80041, 0x41), (0xC0041, None), (0x00041, 0x41), (0x00141, 0x41),
    (0x00441, None), (0x00541, None)])
def test_interprocessor_interrupts_to_myself(rig, command, wanted):
    rig.w(la.ICR_HIGH, 0)
    rig.w(la.ICR, command)
    assert rig.take() == wanted
    assert not rig.r(la.ICR) & 1 << 12


@pytest.mark.parametrize("ldr, dfr, destination, mine", [
    (0x01, 0xF, 0x01, True), (0x01, 0xF, 0x03, True), (0x01, 0xF, 0x02, False),
    (0x21, 0x0, 0x21, True), (0x21, 0x0, 0x23, True), (0x21, 0x0, 0x31, False),
    (0x21, 0x0, 0xFF, True)])
def test_logical_destinations(rig, ldr, dfr, destination, mine):
    rig.w(la.LDR, ldr << 24)
    rig.w(la.DFR, dfr << 28)
    assert rig.apic.deliver(destination, True, la.LOWEST, 0x41, False) == mine
    assert rig.take() == (0x41 if mine else None)


def test_physical_destinations(rig):
    assert not rig.apic.deliver(1, False, la.FIXED, 0x41, False)
    rig.w(la.ID, 5 << 24)
    assert not rig.apic.deliver(0, False, la.FIXED, 0x41, False)
    assert rig.apic.deliver(5, False, la.FIXED, 0x41, False)
    assert rig.apic.deliver(0xFF, False, la.FIXED, 0x42, False)


def test_messages_of_pci(rig):
    rig.apic.message(0xFEE00000, 0x4041)
    assert rig.take() == 0x41
    rig.apic.message(0xFEE01000, 0x4042)          # another CPU
    rig.apic.message(0xFED00000, 0x4043)
    rig.apic.message(0x1_FEE00000, 0x4043)
    rig.apic.message(0xFEE00000, 0x4443)          # NMI
    assert rig.take() is None and rig.bits(la.IRR) == set()


def test_illegal_vectors_are_errors(rig):
    rig.w(la.LVT_ERROR, 0xF2)
    rig.w(la.ICR, 0x40003)
    assert rig.r(la.ESR) == 0
    rig.w(la.ESR, 0)
    assert rig.r(la.ESR) == 0x20
    assert rig.take() == 0xF2
    rig.w(la.EOI, 0)
    assert not fixed(rig, 15)
    rig.w(la.ESR, 0)
    assert rig.r(la.ESR) == 0x40
    rig.w(la.ESR, 0)
    assert rig.r(la.ESR) == 0


def test_software_disabled(rig):
    rig.w(la.LVT_TIMER, 0x41)
    rig.w(la.SVR, 0xFF)
    assert rig.r(la.LVT_TIMER) == 0x10041
    rig.w(la.LVT_TIMER, 0x41)                     # the mask cannot be taken off
    assert rig.r(la.LVT_TIMER) == 0x10041
    assert not fixed(rig, 0x41)


# Timer

def test_one_shot(rig):
    rig.w(la.TIMER_DIVIDE, 0xB)                   # by 1: 40 ns
    rig.w(la.LVT_TIMER, 0xEC)
    rig.w(la.TIMER_INITIAL, 25_000)
    assert rig.timers.next_deadline() == MS
    rig.advance(MS // 4)
    assert rig.r(la.TIMER_CURRENT) == 18_750
    rig.advance(MS)
    assert rig.take() == 0xEC and rig.r(la.TIMER_CURRENT) == 0
    rig.w(la.EOI, 0)
    rig.advance(10 * MS)
    assert rig.take() is None


@pytest.mark.parametrize("divide, by", [
    (0, 2), (1, 4), (2, 8), (3, 16), (8, 32), (9, 64), (10, 128), (11, 1)])
def test_divider(rig, divide, by):
    rig.w(la.TIMER_DIVIDE, divide)
    assert rig.r(la.TIMER_DIVIDE) == divide
    rig.w(la.TIMER_INITIAL, 1000)
    assert rig.timers.next_deadline() == 1000 * 40 * by


def test_periodic_keeps_its_phase(rig):
    rig.w(la.TIMER_DIVIDE, 0xB)
    rig.w(la.LVT_TIMER, 0x200EC)
    rig.w(la.TIMER_INITIAL, 25_000)
    for _ in range(3):
        rig.advance(MS)
        assert rig.take() == 0xEC
        rig.w(la.EOI, 0)
    rig.clock.ns += 10 * MS + MS // 2             # the VMM was elsewhere
    rig.timers.run_due()
    assert rig.take() == 0xEC
    assert rig.timers.next_deadline() == 14 * MS
    assert rig.r(la.TIMER_CURRENT) == 12_500
    rig.w(la.TIMER_INITIAL, 0)
    assert rig.timers.next_deadline() is None and rig.r(la.TIMER_CURRENT) == 0


def test_a_masked_timer_counts_all_the_same(rig):
    rig.w(la.TIMER_DIVIDE, 0xB)
    rig.w(la.LVT_TIMER, 0x100EC)
    rig.w(la.TIMER_INITIAL, 100)
    rig.advance(2000)
    assert rig.r(la.TIMER_CURRENT) == 50
    rig.advance(5000)
    assert rig.take() is None


def test_a_too_fast_timer_skips_beats(rig):
    rig.w(la.TIMER_DIVIDE, 0xB)
    rig.w(la.LVT_TIMER, 0x200EC)
    rig.w(la.TIMER_INITIAL, 3)
    woken = 0
    end = MS
    while (due := rig.timers.next_deadline()) <= end:
        rig.clock.ns = due
        rig.timers.run_due()
        assert 0 < rig.r(la.TIMER_CURRENT) <= 3
        woken += 1
    assert 10 < woken <= 22


def test_dividing_anew_keeps_the_count(rig):
    rig.w(la.TIMER_DIVIDE, 0xB)
    rig.w(la.TIMER_INITIAL, 1000)
    rig.advance(500 * 40)
    rig.w(la.TIMER_DIVIDE, 0)
    assert rig.r(la.TIMER_CURRENT) == 500
    assert rig.timers.next_deadline() == 500 * 40 + 500 * 80


# MSR

def test_base_register(rig):
    assert rig.apic.write_msr(0x1B, 0xFEC10000 | 0x800)
    assert rig.apic.read_msr(0x1B) == 0xFEC10900
    assert rig.r(la.VERSION_REG) == 0xFFFFFFFF
    assert rig.bus.read_mmio(0xFEC10000 + la.VERSION_REG, 4) == la.VERSION
    for value in (0xFEE00D00, 1 << 40, 0xFEE00801):
        assert not rig.apic.write_msr(0x1B, value)
    assert not rig.apic.write_msr(0x6E0, 0) and rig.apic.read_msr(0x6E0) is None


def test_a_disabled_apic_is_a_wire(rig):
    fixed(rig, 0x41)
    rig.w(la.TIMER_INITIAL, 1000)
    assert rig.apic.write_msr(0x1B, 0xFEE00000)
    assert not rig.apic.intr and rig.timers.next_deadline() is None
    assert not fixed(rig, 0x42)
    rig.ext = [0x33]
    rig.apic.set_lint0(True)
    assert rig.take() == 0x33


def test_access_widths(rig):
    assert rig.bus.read_mmio(BASE + la.VERSION_REG + 2, 1) == 5
    assert rig.bus.read_mmio(BASE + la.VERSION_REG + 4, 4) == 0
    rig.bus.write_mmio(BASE + la.TPR, 1, 0x20)
    rig.bus.write_mmio(BASE + la.TPR + 4, 4, 0x20)
    assert rig.r(la.TPR) == 0


# Untrusted values

STEP = st.one_of(
    st.tuples(st.just("w"), st.sampled_from(range(0, 0x400, 16)), st.integers(0, 0xFFFFFFFF)),
    st.tuples(st.just("w"), st.sampled_from([la.SVR]), st.sampled_from([0x1FF, 0xFF, 0x10F])),
    st.tuples(st.just("w"), st.sampled_from([la.LVT_TIMER]), st.sampled_from([0x200EC, 0xEC, 3])),
    st.tuples(st.just("w"), st.sampled_from([la.TIMER_INITIAL]), st.integers(0, 40)),
    st.tuples(st.just("w"), st.sampled_from([la.ICR]), st.integers(0x40000, 0x400FF)),
    st.tuples(st.just("w"), st.sampled_from([la.EOI]), st.just(0)),
    st.tuples(st.just("x"), st.integers(0, 0xFFF), st.sampled_from([1, 2, 4, 8]),
              st.integers(0, (1 << 64) - 1)),
    st.tuples(st.just("d"), st.integers(0, 255), st.booleans(), st.integers(0, 7),
              st.integers(0, 255), st.booleans()),
    st.tuples(st.just("m"), st.integers(0xFEDFFFF0, 0xFEF00000), st.integers(0, 0xFFFFFFFF)),
    st.tuples(st.just("l"), st.booleans()),
    st.tuples(st.just("8"), st.integers(0, 15)),
    st.tuples(st.just("t"), st.sampled_from([1, 40, 50_000, MS, 10**12])),
    st.tuples(st.just("b"), st.integers(0, (1 << 64) - 1) |
              st.sampled_from([0xFEE00900, 0xFEE00000])),
    st.tuples(st.just("a")),
)


@settings(max_examples=400, deadline=None)
@given(st.lists(STEP, max_size=80))
def test_no_guest_can_upset_it(steps):
    rig = Rig(enabled=False)
    for step in steps:
        kind = step[0]
        if kind == "w":
            rig.w(*step[1:])
        elif kind == "x":
            _, offset, size, value = step
            rig.bus.write_mmio(BASE + offset, size, value)
            assert 0 <= rig.bus.read_mmio(BASE + offset, size) < 1 << 8 * size
        elif kind == "d":
            rig.apic.deliver(*step[1:])
        elif kind == "m":
            rig.apic.message(*step[1:])
        elif kind == "l":
            rig.apic.set_lint0(step[1])
        elif kind == "8":
            rig.mov_cr8(step[1])
        elif kind == "t":
            rig.clock.ns += step[1]
            rig.timers.run_due()
        elif kind == "b":
            rig.apic.write_msr(0x1B, step[1])
        elif rig.apic.intr:
            rig.ext = [0x30]
            before = rig.r(la.PPR)
            vector = rig.apic.acknowledge()
            assert vector == 0x30 or not rig.ext or vector >> 4 > before >> 4
        # The line is up exactly if there is something to take, whatever way we came here.
        irr, isr = rig.apic._irr, rig.apic._isr
        due = rig.apic._software_enabled and irr and \
            irr.bit_length() - 1 >> 4 > max(rig.cr8, max(isr.bit_length() - 1, 0) >> 4)
        assert rig.apic.intr == bool(due or rig.apic._ext_wanted())
        assert len(rig.timers._heap) < 200
