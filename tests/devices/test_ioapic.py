# SPDX-License-Identifier: GPL-2.0-or-later
"""The I/O APIC against the 82093AA data sheet; and hostile accesses."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bt.devices.ioapic import BASE, PINS, IoApic
from bt.machine.bus import Bus

MASKED, LEVEL, REMOTE_IRR, LOGICAL = 1 << 16, 1 << 15, 1 << 14, 1 << 11


class Rig:
    def __init__(self):
        self.bus = Bus()
        self.sent = []
        self.accepts = True
        self.apic = IoApic(self.bus, self._deliver)

    def _deliver(self, *message):
        self.sent.append(message)
        return self.accepts

    def r(self, index):
        self.bus.write_mmio(BASE, 4, index)
        return self.bus.read_mmio(BASE + 0x10, 4)

    def w(self, index, value):
        self.bus.write_mmio(BASE, 4, index)
        self.bus.write_mmio(BASE + 0x10, 4, value)

    def entry(self, pin, low, high=0):
        self.w(0x11 + 2 * pin, high)
        self.w(0x10 + 2 * pin, low)


@pytest.fixture
def rig():
    return Rig()


def test_after_power_on(rig):
    assert rig.r(0) == 1 << 24 and rig.r(1) == 0x170011
    assert all(rig.r(0x10 + 2 * pin) == MASKED for pin in range(PINS))
    assert rig.r(0x40) == 0 and rig.r(0xFF) == 0
    rig.apic.set_irq(4, True)
    assert rig.sent == []


def test_edges(rig):
    rig.entry(4, 0x34 | LOGICAL | 1 << 8, 0x01 << 24)
    rig.apic.set_irq(4, True)
    rig.apic.set_irq(4, True)
    assert rig.sent == [(1, True, 1, 0x34, False)]
    rig.apic.set_irq(4, False)
    rig.apic.set_irq(4, True)
    assert len(rig.sent) == 2 and not rig.r(0x18) & REMOTE_IRR


def test_an_edge_on_a_masked_pin_is_lost(rig):
    rig.entry(4, 0x34 | MASKED)
    rig.apic.set_irq(4, True)
    rig.entry(4, 0x34)
    assert rig.sent == []


def test_levels(rig):
    rig.entry(16, 0x41 | LEVEL | MASKED)
    rig.apic.set_irq(16, True)
    assert rig.sent == []
    rig.entry(16, 0x41 | LEVEL)
    assert rig.sent == [(0, False, 0, 0x41, True)]
    assert rig.r(0x30) & REMOTE_IRR
    rig.apic.set_irq(16, False)
    rig.apic.set_irq(16, True)
    assert len(rig.sent) == 1                     # it is being served
    rig.apic.eoi(0x42)
    assert len(rig.sent) == 1
    rig.apic.eoi(0x41)
    assert len(rig.sent) == 2                     # still asserted
    rig.apic.set_irq(16, False)
    rig.apic.eoi(0x41)
    assert len(rig.sent) == 2 and not rig.r(0x30) & REMOTE_IRR


def test_two_pins_with_one_vector(rig):
    for pin in (16, 17):
        rig.entry(pin, 0x41 | LEVEL)
        rig.apic.set_irq(pin, True)
    rig.apic.set_irq(16, False)
    rig.apic.eoi(0x41)
    assert len(rig.sent) == 3


def test_what_is_not_accepted_is_not_in_service(rig):
    rig.accepts = False
    rig.entry(16, 0x41 | LEVEL)
    rig.apic.set_irq(16, True)
    assert not rig.r(0x30) & REMOTE_IRR


def test_linux_ends_an_interrupt_by_hand(rig):
    """__eoi_ioapic_pin, for versions below 0x20: masked edge, then level again."""
    rig.entry(16, 0x41 | LEVEL)
    rig.apic.set_irq(16, True)
    entry = rig.r(0x30)
    rig.w(0x30, (entry | MASKED) & ~LEVEL)
    assert not rig.r(0x30) & REMOTE_IRR
    rig.w(0x30, entry)
    assert len(rig.sent) == 2


def test_read_only_bits(rig):
    rig.entry(3, 0xFFFFFFFF, 0xFFFFFFFF)
    assert rig.r(0x16) == 0x1AFFF and rig.r(0x17) == 0xFF000000
    rig.w(0, 0xFFFFFFFF)
    rig.w(1, 0)
    assert rig.r(0) == 0x0F000000 and rig.r(1) == 0x170011


def test_access_widths(rig):
    rig.bus.write_mmio(BASE, 1, 0x11)
    assert rig.bus.read_mmio(BASE, 4) == 0x11
    rig.bus.write_mmio(BASE + 0x10, 2, 0xFFFF)
    rig.bus.write_mmio(BASE + 0x14, 4, 0xFFFFFFFF)
    assert rig.bus.read_mmio(BASE + 0x10, 4) == 0
    rig.bus.write_mmio(BASE, 4, 1)
    assert rig.bus.read_mmio(BASE + 0x12, 1) == 0x17


STEP = st.one_of(
    st.tuples(st.just("w"), st.integers(0, 0x50), st.integers(0, 0xFFFFFFFF)),
    st.tuples(st.just("w"), st.sampled_from(range(0x10, 0x40, 2)),
              st.sampled_from([0x8041, 0x18041, 0x41, 0xE041])),
    st.tuples(st.just("x"), st.integers(0, 0xFFF), st.sampled_from([1, 2, 4, 8]),
              st.integers(0, (1 << 64) - 1)),
    st.tuples(st.just("i"), st.integers(0, 23), st.booleans()),
    st.tuples(st.just("e"), st.integers(0, 255)),
    st.tuples(st.just("a"), st.booleans()),
)


@settings(max_examples=300, deadline=None)
@given(st.lists(STEP, max_size=60))
def test_no_guest_can_upset_it(steps):
    rig = Rig()
    for step in steps:
        if step[0] == "w":
            rig.w(*step[1:])
        elif step[0] == "x":
            _, offset, size, value = step
            rig.bus.write_mmio(BASE + offset, size, value)
            assert 0 <= rig.bus.read_mmio(BASE + offset, size) < 1 << 8 * size
        elif step[0] == "i":
            rig.apic.set_irq(*step[1:])
        elif step[0] == "e":
            rig.apic.eoi(step[1])
        else:
            rig.accepts = step[1]
        for _, logical, mode, vector, level in rig.sent:
            assert isinstance(logical, bool) and isinstance(level, bool)
            assert 0 <= mode < 8 and 0 <= vector < 256
        assert len(rig.sent) <= PINS              # one write sends no storm
        rig.sent.clear()
