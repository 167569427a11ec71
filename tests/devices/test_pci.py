# SPDX-License-Identifier: GPL-2.0-or-later
"""PCI: configuration mechanism 1, BARs that move, interrupt pins, MSI-X; and hostile accesses."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bt.devices.pci import (
    CAP_MSIX,
    COMMAND_IO,
    COMMAND_MASTER,
    COMMAND_MEMORY,
    COMMAND_NO_INTX,
    MEMORY_WINDOW,
    PciFunction,
    PciHost,
)
from bt.machine.bus import Bus

ADDRESS, DATA = 0xCF8, 0xCFC


class Card(PciFunction):
    """Logs what reaches it; reads as bar * 0x1000 + offset."""

    def __init__(self, **options):
        super().__init__(0x1234, 0x5678, 0x020000, interrupt_pin=1, subsystem_vendor=0xAAAA,
                         subsystem_id=0xBBBB, **options)
        self.log = []

    def read_bar(self, bar, offset, size):
        self.log.append(("r", bar, offset, size))
        return bar * 0x1000 + offset

    def write_bar(self, bar, offset, size, value):
        self.log.append(("w", bar, offset, size, value))


class Rig:
    def __init__(self):
        self.bus = Bus()
        self.levels = [False] * 4
        self.messages = []
        self.host = PciHost(self.bus, [self._line(n) for n in range(4)], (10, 11, 10, 11))
        self.host.on_message = lambda address, data: self.messages.append((address, data))

    def _line(self, number):
        def drive(level):
            assert self.levels[number] != level
            self.levels[number] = level
        return drive

    def select(self, slot, register, function=0, bus=0):
        self.bus.write(ADDRESS, 4, 1 << 31 | bus << 16 | slot << 11 | function << 8 | register & ~3)

    def read(self, slot, register, size=4, **where):
        self.select(slot, register, **where)
        return self.bus.read(DATA + (register & 3), size)

    def write(self, slot, register, size, value, **where):
        self.select(slot, register, **where)
        self.bus.write(DATA + (register & 3), size, value)


@pytest.fixture
def rig():
    return Rig()


@pytest.fixture
def card(rig):
    card = Card()
    card.add_bar(0, "io", 32)
    card.add_bar(1, "mem32", 0x1000)
    card.add_bar(2, "mem64", 0x4000, prefetchable=True)
    card.add_msix(3, 2, 0x2000, 0x3000)
    assert rig.host.add(card) == 1
    return card


def test_linux_finds_mechanism_1(rig):
    """pci_check_type1 (arch/x86/pci/direct.c)."""
    rig.bus.write(0xCFB, 1, 1)
    old = rig.bus.read(ADDRESS, 4)
    rig.bus.write(ADDRESS, 4, 0x80000000)
    assert rig.bus.read(ADDRESS, 4) == 0x80000000
    rig.bus.write(ADDRESS, 4, old)
    assert rig.read(0, 0x08) >> 16 == 0x0600      # pci_sanity_check: a host bridge


def test_header(rig, card):
    assert rig.read(1, 0x00) == 0x5678_1234
    assert rig.read(1, 0x02, 2) == 0x5678
    assert rig.read(1, 0x0A, 2) == 0x0200 and rig.read(1, 0x0E, 1) == 0
    assert rig.read(1, 0x2C) == 0xBBBB_AAAA
    assert rig.read(1, 0x3C) == 0x0000_010B       # slot 1, INTA: the second line, IRQ 11
    assert rig.read(1, 0x06, 2) & 1 << 4
    rig.write(1, 0x00, 4, 0)
    rig.write(1, 0x2C, 4, 0)
    rig.write(1, 0x3C, 4, 0xFFFFFF05)
    assert rig.read(1, 0x00) == 0x5678_1234 and rig.read(1, 0x2C) == 0xBBBB_AAAA
    assert rig.read(1, 0x3C) == 0x0000_0105       # the line is a scratch register, the pin is not


def test_nobody_there(rig, card):
    assert rig.read(2, 0) == 0xFFFFFFFF
    assert rig.read(1, 0, function=1) == 0xFFFFFFFF
    assert rig.read(1, 0, bus=1) == 0xFFFFFFFF
    rig.select(1, 0)
    assert rig.bus.read(DATA + 3, 2) == 0xFFFF    # over the end of the word
    rig.bus.write(ADDRESS, 4, 1 << 11)            # not enabled
    assert rig.bus.read(DATA, 4) == 0xFFFFFFFF


@pytest.mark.parametrize("register, size, kind", [
    (0x10, 32, 1), (0x14, 0x1000, 0), (0x18, 0x4000, 12)])
def test_bars_are_sized_as_the_specification_says(rig, card, register, size, kind):
    before = rig.read(1, register)
    assert before & (15 if register > 0x10 else 3) == kind
    rig.write(1, register, 4, 0xFFFFFFFF)
    assert -(rig.read(1, register) & ~(15 if register > 0x10 else 3)) & 0xFFFFFFFF == size
    rig.write(1, register, 4, before)
    if register == 0x18:
        assert rig.read(1, 0x1C) == 0
        rig.write(1, 0x1C, 4, 0xFFFFFFFF)
        assert rig.read(1, 0x1C) == 0xFFFFFFFF
        rig.write(1, 0x1C, 4, 0)
    at = before & ~15
    assert card.log == []
    if register > 0x10:
        rig.bus.read_mmio(at + 8, 4)
        assert card.log == [("r", (register - 0x10) // 4, 8, 4)]


def test_bars_decode_and_move(rig, card):
    port, memory = rig.read(1, 0x10) & ~3, rig.read(1, 0x14)
    assert port % 32 == 0 and memory % 0x1000 == 0 and memory >= MEMORY_WINDOW[0]
    assert rig.bus.read(port + 4, 2) == 4
    rig.bus.write(port + 31, 1, 0x155)
    rig.bus.write(port + 31, 2, 0)                # over the end: dropped
    rig.bus.write_mmio(memory + 0x10, 8, 7)
    assert card.log == [("r", 0, 4, 2), ("w", 0, 31, 1, 0x55), ("w", 1, 0x10, 8, 7)]
    card.log.clear()
    rig.write(1, 0x10, 4, 0x2000)
    rig.write(1, 0x14, 4, 0xF0000000)
    assert rig.bus.read(port, 4) == 0xFFFFFFFF and rig.bus.read_mmio(memory, 4) == 0xFFFFFFFF
    assert rig.bus.read(0x2004, 1) == 4 and rig.bus.read_mmio(0xF0000024, 4) == 0x1024
    rig.write(1, 4, 2, COMMAND_MEMORY)
    assert rig.bus.read(0x2004, 1) == 0xFF and rig.bus.read_mmio(0xF0000024, 4) == 0x1024
    rig.write(1, 4, 2, COMMAND_IO)
    assert rig.bus.read(0x2004, 1) == 4 and rig.bus.read_mmio(0xF0000024, 4) == 0xFFFFFFFF


def test_a_bar_over_the_boards_ports_takes_nothing(rig, card):
    class Board:
        def read_port(self, port, size):
            return 0x77

        def write_port(self, port, size, value):
            pass

    rig.bus.claim(Board(), 0x64, 1)
    rig.write(1, 0x10, 4, 0x60)
    assert rig.bus.read(0x64, 1) == 0x77 and rig.bus.read(0x65, 1) == 5
    rig.write(1, 0x10, 4, 0xC000)
    assert rig.bus.read(0x64, 1) == 0x77 and rig.bus.read(0x65, 1) == 0xFF


def test_two_bars_at_one_place_and_apart_again(rig, card):
    other = Card()
    other.add_bar(0, "mem32", 0x1000)
    rig.host.add(other)
    rig.write(1, 0x14, 4, 0xF0000000)
    rig.write(2, 0x10, 4, 0xF0000000)
    assert rig.bus.read_mmio(0xF0000004, 4) == 4
    rig.write(2, 0x10, 4, 0xF1000000)
    assert rig.bus.read_mmio(0xF0000004, 4) == 0x1004


def test_pins_share_lines(rig, card):
    other = Card()
    rig.host.add(other, slot=5)                   # 5 + 0 and 1 + 0 are the same line
    card.set_irq(True)
    card.set_irq(True)
    other.set_irq(True)
    assert rig.levels == [False, True, False, False]
    assert rig.read(1, 0x06, 2) & 8
    card.set_irq(False)
    assert rig.levels[1]
    rig.write(5, 4, 2, COMMAND_NO_INTX)
    assert not rig.levels[1] and rig.read(5, 0x06, 2) & 8
    rig.write(5, 4, 2, 0)
    assert rig.levels[1]
    other.set_irq(False)
    assert rig.levels == [False] * 4


def msix_offset(rig):
    at = rig.read(1, 0x34, 1)
    assert rig.read(1, at, 1) == CAP_MSIX and rig.read(1, at + 1, 1) == 0
    return at


def test_msix(rig, card):
    at = msix_offset(rig)
    assert rig.read(1, at + 2, 2) == 2
    assert rig.read(1, at + 4) == 0x2002 and rig.read(1, at + 8) == 0x3002
    base = rig.read(1, 0x18) & ~15
    table, pending = base + 0x2000, base + 0x3000
    assert rig.bus.read_mmio(table + 12, 4) == 1  # masked after power-on
    card.set_irq(True)
    card.msix_notify(1)
    assert rig.messages == [] and rig.bus.read_mmio(pending, 8) == 0
    rig.write(1, at + 2, 2, 0x8000)
    rig.write(1, 4, 2, COMMAND_MEMORY | COMMAND_MASTER)
    assert card.msix_enabled and not rig.levels[1]
    for vector in range(3):
        entry = table + 16 * vector
        rig.bus.write_mmio(entry, 4, 0xFEE01003)
        rig.bus.write_mmio(entry + 4, 4, 0)
        rig.bus.write_mmio(entry + 8, 4, 0x40 + vector)
    card.msix_notify(1)
    card.msix_notify(3)                           # there are three
    assert rig.messages == [] and rig.bus.read_mmio(pending, 8) == 2
    rig.bus.write_mmio(pending, 8, 0)             # read-only
    rig.bus.write_mmio(table + 16 + 12, 4, 0)
    assert rig.messages == [(0xFEE01000, 0x41)] and rig.bus.read_mmio(pending, 8) == 0
    rig.write(1, at + 2, 2, 0xC000)               # all masked
    card.msix_notify(1)
    assert len(rig.messages) == 1 and rig.bus.read_mmio(pending, 8) == 2
    rig.write(1, at + 2, 2, 0x8000)
    assert len(rig.messages) == 2
    rig.write(1, at + 2, 2, 0)
    assert rig.levels[1] and not card.msix_enabled


def test_a_function_that_is_no_bus_master_sends_nothing(rig, card):
    base = rig.read(1, 0x18) & ~15
    rig.write(1, msix_offset(rig) + 2, 2, 0x8000)
    rig.bus.write_mmio(base + 0x200C, 4, 0)
    card.msix_notify(0)
    assert rig.messages == []


def test_the_rest_of_the_msix_bar_is_the_devices(rig, card):
    base = rig.read(1, 0x18) & ~15
    rig.bus.write_mmio(base + 0x100, 4, 9)
    rig.bus.write_mmio(base + 0x3008, 4, 9)
    assert card.log == [("w", 2, 0x100, 4, 9), ("w", 2, 0x3008, 4, 9)]


def test_capabilities_are_linked_in_order(rig):
    card = Card()
    first = card.add_capability(9, b"\x10" + bytes(13), b"\0" * 4 + b"\xff")
    second = card.add_capability(9, bytes(5))
    assert (first, second) == (0x40, 0x50)
    rig.host.add(card, slot=3)
    assert rig.read(3, 0x34, 1) == 0x40 and rig.read(3, 0x41, 1) == 0x50
    assert rig.read(3, 0x51, 1) == 0
    rig.write(3, 0x44, 4, 0xFFFFFFFF)
    assert rig.read(3, 0x44) == 0x00FF0000


def test_several_functions_of_one_device(rig):
    first, second = Card(), Card()
    rig.host.add(first, slot=4)
    assert rig.read(4, 0x0E, 1) == 0
    rig.host.add(second, slot=4, number=1)
    assert rig.read(4, 0x0E, 1) == 0x80 == rig.read(4, 0x0E, 1, function=1)


def test_a_large_bar_goes_above_4_gb_and_a_full_bus_says_so(rig):
    card = Card()
    card.add_bar(0, "mem64", 1 << 32)
    rig.host.add(card)
    assert rig.read(1, 0x14) == 0x80
    assert rig.bus.read_mmio(0x80_0000_0010, 4) == 0x10
    for _ in range(30):
        rig.host.add(Card())
    with pytest.raises(ValueError, match="no place"):
        rig.host.add(Card())


@pytest.mark.parametrize("index, kind, size", [
    (6, "mem32", 16), (5, "mem64", 16), (0, "rom", 16), (0, "io", 512), (1, "mem32", 16)])
def test_impossible_bars(index, kind, size):
    card = Card()
    card.add_bar(0, "mem64", 16) if index == 1 else None
    with pytest.raises(ValueError, match="no BAR"):
        card.add_bar(index, kind, size)


def test_windows_where_they_are_said_to_be():
    from bt.devices import pci
    assert pci.MEMORY_WINDOW[1] <= 0xFEC00000 and pci.HIGH_WINDOW[0] >= 65 << 30


# Untrusted values

STEP = st.one_of(
    st.tuples(st.just("c"), st.sampled_from([0, 1, 2, 31]), st.integers(0, 255),
              st.sampled_from([1, 2, 4]), st.integers(0, 0xFFFFFFFF)),
    st.tuples(st.just("c"), st.just(1), st.sampled_from([4, 16, 20, 24, 28, 66]),
              st.sampled_from([2, 4]),
              st.sampled_from([0, 7, 0xFFFFFFFF, 0xE0000000, 0xC000, 0x8000, 0xC000FFFF])),
    st.tuples(st.just("m"), st.integers(0, 0xFFFFFFFF), st.sampled_from([1, 2, 4, 8]),
              st.integers(0, (1 << 64) - 1)),
    st.tuples(st.just("m"), st.integers(0xE0000000, 0xE000FFFF), st.sampled_from([1, 2, 4, 8]),
              st.integers(0, (1 << 64) - 1)),
    st.tuples(st.just("p"), st.integers(0xCF8, 0xCFF) | st.integers(0xC000, 0xC03F) |
              st.integers(0, 0xFFFF),
              st.sampled_from([1, 2, 4]), st.integers(0, 0xFFFFFFFF)),
    st.tuples(st.just("n"), st.integers(-1, 4)),
    st.tuples(st.just("i"), st.booleans()),
)


@settings(max_examples=300, deadline=None)
@given(st.lists(STEP, max_size=60))
def test_no_guest_can_upset_it(steps):
    rig = Rig()
    card = Card()
    card.add_bar(0, "io", 32)
    card.add_bar(1, "mem32", 0x1000)
    card.add_bar(2, "mem64", 0x4000)
    card.add_msix(3, 2, 0x2000, 0x3000)
    rig.host.add(card)
    for step in steps:
        if step[0] == "c":
            _, slot, register, size, value = step
            rig.write(slot, register, size, value)
            assert 0 <= rig.read(slot, register, size) < 1 << 8 * size
        elif step[0] == "m":
            _, gpa, size, value = step
            rig.bus.write_mmio(gpa, size, value)
            assert 0 <= rig.bus.read_mmio(gpa, size) < 1 << 8 * size
        elif step[0] == "p":
            _, port, size, value = step
            rig.bus.write(port, size, value)
            assert 0 <= rig.bus.read(port, size) < 1 << 8 * size
        elif step[0] == "n":
            card.msix_notify(step[1])
        else:
            card.set_irq(step[1])
        assert rig.bus.mmio_ranges[0] <= 4
        assert rig.read(1, 0) == 0x56781234 and rig.read(1, 0x3D, 1) == 1
        rig.bus.write(ADDRESS, 4, step[1] if step[0] == "m" else 0)
