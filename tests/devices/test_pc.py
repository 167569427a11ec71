# SPDX-License-Identifier: GPL-2.0-or-later
"""The whole PC: reset and exit, absent devices, and what no guest may do to it."""

import pytest
from devicerig import MS, Rig
from hypothesis import example, given, settings
from hypothesis import strategies as st

from bt.machine.bus import ABSENT


@pytest.mark.parametrize("port, value, source", [
    (0x64, 0xFE, "i8042"), (0x92, 0x01, "port 92"), (0x92, 0x03, "port 92"), (0xCF9, 0x06, "cf9"),
    (0xCF9, 0x0E, "cf9")])
def test_reset(rig, port, value, source):
    rig.outb(value, port)
    assert rig.resets == [source] and rig.exits == []


@pytest.mark.parametrize("port, value", [
    (0x64, 0xD1), (0x64, 0xFF), (0x64, 0xAA), (0x60, 0xFE), (0x92, 0x02), (0xCF9, 0x02),
    (0x500, 1), (0x502, 1)])
def test_no_reset(rig, port, value):
    rig.outb(value, port)
    assert rig.resets == [] and rig.exits == []


def test_linux_resets_through_cf9(rig):
    """reboot=pci: keep the register's other bits, select a hard reset, then pulse."""
    before = rig.inb(0xCF9) & ~0x06
    rig.outb(before | 0x02, 0xCF9)
    assert rig.inb(0xCF9) & 0x02 and rig.resets == []
    rig.outb(before | 0x06, 0xCF9)
    assert rig.resets == ["cf9"]


def test_pci_configuration_address_is_not_a_reset(rig):
    for port, size in ((0xCF8, 4), (0xCF8, 2), (0xCF9, 2), (0xCF9, 4)):
        rig.bus.write(port, size, 0xFFFFFFFF)
    assert rig.resets == []


def test_linux_finds_no_pci(rig):
    rig.outb(0x01, 0xCFB)
    rig.bus.write(0xCF8, 4, 0x80000000)
    assert rig.bus.read(0xCF8, 4) != 0x80000000
    for port in (0xCFB, 0xCF8, 0xCFA):
        rig.outb(0, port)
    assert rig.inb(0xCF8) != 0 or rig.inb(0xCFA) != 0


@pytest.mark.parametrize("size", [1, 2, 4])
def test_exit_port_gives_its_low_byte(rig, size):
    rig.bus.write(0x501, size, 0x01020307)
    assert rig.exits == [7]


def test_linux_gives_up_on_the_keyboard_controller_at_once(rig):
    """i8042_flush: still "data there" after 16 bytes is "no controller". kb_wait: bit 1."""
    reads = 0
    while rig.inb(0x64) & 1 and reads <= 16:
        rig.inb(0x60)
        reads += 1
    assert reads > 16
    assert not rig.inb(0x64) & 2


def test_a20_is_open(rig):
    assert rig.inb(0x92) == 0x02


def test_debug_console(rig):
    lines = []
    rig.pc.debug.on_output = lines.append
    assert rig.inb(0xE9) == 0xE9
    for byte in b"one\ntw":
        rig.outb(byte, 0xE9)
    rig.pc.flush()
    assert lines == [b"one\n", b"tw"]


@pytest.mark.parametrize("port", [
    0x00, 0x0F, 0x60, 0x80, 0x81, 0xC0, 0xF0, 0x170, 0x1F0, 0x1F7, 0x278, 0x2E8, 0x378, 0x3C0,
    0x3D4, 0x3DA, 0x3F6, 0xCF8, 0xCFC, 0xFFFF])
def test_absent_ports_never_reach_python(rig, port):
    assert rig.bus.read_kind[port] == rig.bus.write_kind[port] == ABSENT
    assert rig.bus.read(port, 4) == 0xFFFFFFFF


def test_masks_and_polled_registers_are_published(rig):
    for port in (0x21, 0xA1, 0x4D0, 0x4D1, 0x64, 0x92, 0xCF9, 0xE9, 0x3FD, 0x2FD, 0x3ED):
        assert rig.bus.read_kind[port] == 2, hex(port)


# Untrusted values

PORTS = st.one_of(
    st.sampled_from([*range(0x20, 0x22), *range(0xA0, 0xA2), *range(0x40, 0x44), 0x61, 0x64, 0x92,
                     0x70, 0x71, 0xE9, 0x4D0, 0x4D1, 0x501, 0xCF8, 0xCF9]),
    st.sampled_from([base + i for base in (0x3F8, 0x2F8, 0x3E8) for i in range(8)]),
    st.integers(0, 0xFFFF))
STEP = st.one_of(
    st.tuples(st.just("w"), PORTS, st.sampled_from([1, 1, 1, 2, 4]), st.integers(0, 0xFFFFFFFF)),
    st.tuples(st.just("r"), PORTS, st.sampled_from([1, 1, 1, 2, 4])),
    st.tuples(st.just("t"), st.sampled_from([1, 838, 50_000, MS, 10**9, 10**14])),
    st.tuples(st.just("i"), st.integers(0, 15), st.booleans()),
    st.tuples(st.just("a")),
    st.tuples(st.just("f"), st.binary(max_size=40)),
)


def play(steps):
    """Run ``steps`` on a new PC; everything that can be seen of it, in order."""
    rig = Rig()
    trace = []
    rig.pc.pic.on_intr = lambda level: trace.append(("intr", level))
    for step in steps:
        kind = step[0]
        if kind == "w":
            rig.bus.write(*step[1:])
        elif kind == "r":
            value = rig.bus.read(*step[1:])
            assert 0 <= value < 1 << 8 * step[2], step
            trace.append(value)
        elif kind == "t":
            rig.oversleep(step[1])
        elif kind == "i":
            rig.pc.pic.set_irq(*step[1:])
        elif kind == "a":
            vector = rig.pc.pic.acknowledge()
            assert 0 <= vector <= 255
            trace.append(vector)
        else:
            rig.pc.com1.feed(step[1])
        due = rig.timers.next_deadline()
        trace.append(due)
        published = [(p, rig.bus.value[p]) for p in (0x21, 0xA1, 0x3FA, 0x3FD, 0x3FE)
                     if rig.bus.read_kind[p] == 2]
        trace.append(published)
    trace.append((rig.output, rig.resets, rig.exits))
    return trace


@settings(max_examples=300, deadline=None)
@given(st.lists(STEP, max_size=60))
@example([("w", 0x43, 1, 0x34), ("w", 0x40, 2, 0x0001), ("t", 10**14), ("r", 0x40, 2)])
@example([("w", 0x70, 1, 0x0B), ("w", 0x71, 1, 0xFF), ("w", 0x70, 1, 9), ("w", 0x71, 1, 0xFF),
          ("w", 0x70, 1, 0x0B), ("w", 0x71, 1, 0x70), ("t", 10**14), ("r", 0x71, 1)])
def test_no_guest_can_upset_it_and_every_run_repeats(steps):
    assert play(steps) == play(steps)


@settings(max_examples=200, deadline=None)
@given(st.lists(STEP, max_size=60))
def test_published_values_are_what_the_device_would_say(steps):
    rig = Rig()
    for step in steps:
        if step[0] == "w":
            rig.bus.write(*step[1:])
        elif step[0] == "f":
            rig.pc.com1.feed(step[1])
        elif step[0] == "t":
            rig.oversleep(step[1])
        for port in (0x21, 0xA1, 0x4D0, 0x4D1, *range(0x3F8, 0x400)):
            if rig.bus.read_kind[port] == 2:
                device = rig.pc.pic if port < 0x3F8 or port > 0x3FF else rig.pc.com1
                assert device.read_port(port, 1) == rig.bus.value[port], hex(port)
