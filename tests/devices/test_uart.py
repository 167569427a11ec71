# SPDX-License-Identifier: GPL-2.0-or-later
"""Against the PC16550D data sheet, and the access sequences of Linux's 8250 driver."""

import pytest

from bt.devices.uart import FLUSH_AT, INPUT_CAP
from bt.machine.bus import ASK, PUBLISHED

BASE = 0x3F8
RBR, IER, IIR, LCR, MCR, LSR, MSR, SCR = range(8)
THR, DLL, DLM, FCR = RBR, RBR, IER, IIR
OPEN = 0x0B  # DTR, RTS, OUT2


@pytest.fixture
def uart(rig):
    rig.init_pics(icw4=0x03)
    rig.get = lambda register: rig.inb(BASE + register)
    rig.put = lambda register, value: rig.outb(value, BASE + register)
    return rig


def intr(rig):
    """Whether the port drives its interrupt line."""
    return rig.pc.com1._level


def test_registers_after_reset(uart):
    assert [uart.get(r) for r in (IER, IIR, LCR, MCR, LSR, MSR)] == [0, 1, 0, 0, 0x60, 0xB0]


def test_writable_bits(uart):
    for register, mask in ((IER, 0x0F), (LCR, 0x7F), (MCR, 0x1F), (SCR, 0xFF)):
        uart.put(register, mask)
        assert uart.get(register) == mask
    uart.put(LCR, 3)
    uart.put(IER, 0xF0)
    uart.put(MCR, 0xE0)
    assert uart.get(IER) == uart.get(MCR) == 0


def test_divisor_latch_hides_data_and_interrupt_enable(uart):
    uart.put(IER, 5)
    uart.put(LCR, 0x83)
    uart.put(DLL, 0x0C)
    uart.put(DLM, 0x01)
    assert (uart.get(DLL), uart.get(DLM)) == (0x0C, 0x01)
    uart.put(LCR, 0x03)
    assert (uart.get(RBR), uart.get(IER)) == (0, 5)
    uart.pc.com1.flush()
    assert uart.output == []


# Output

def test_output_is_handed_on_by_the_line(uart):
    for byte in b"one\ntwo":
        assert uart.get(LSR) & 0x60 == 0x60
        uart.put(THR, byte)
    assert uart.output == [b"one\n"]
    uart.pc.flush()
    uart.pc.flush()
    assert uart.output == [b"one\n", b"two"]


def test_output_without_newline_does_not_wait_for_ever(uart):
    for i in range(FLUSH_AT + 5):
        uart.put(THR, 0x80 + i % 100)
    assert [len(chunk) for chunk in uart.output] == [FLUSH_AT]


def test_nobody_listening(uart):
    uart.pc.com1.on_output = None
    for byte in b"lost\n":
        uart.put(THR, byte)


# Interrupts

def test_transmitter_interrupt(uart):
    uart.put(MCR, OPEN)
    assert not intr(uart)
    uart.put(IER, 2)
    assert intr(uart), "enabling it on an empty transmitter raises it"
    assert uart.get(IIR) == 0x02
    assert not intr(uart), "reading IIR as its source clears it"
    assert uart.get(IIR) == 0x01
    uart.put(THR, 0x41)
    assert intr(uart)
    uart.put(THR, 0x42)
    assert uart.get(IIR) == 0x02
    uart.put(IER, 2)
    assert not intr(uart), "it was enabled before"
    uart.put(IER, 0)
    uart.put(IER, 2)
    assert intr(uart)


def test_linux_startup_tests_find_no_bugs(uart):
    """serial8250_do_startup: the backup-timer (THRE) test, then the TXEN test."""
    uart.put(IER, 2)
    first = uart.get(IIR)
    uart.put(IER, 0)
    uart.put(IER, 2)
    second = uart.get(IIR)
    uart.put(IER, 0)
    assert not first & 1 and not second & 1
    uart.put(IER, 2)
    lsr, iir = uart.get(LSR), uart.get(IIR)
    uart.put(IER, 0)
    assert lsr & 0x40 and not iir & 1


def test_out2_gates_the_line(uart):
    uart.put(IER, 2)
    assert not intr(uart) and uart.get(IIR) == 2
    uart.put(IER, 0)
    uart.put(IER, 2)
    uart.put(MCR, 0x08)
    assert intr(uart)
    uart.put(MCR, 0)
    assert not intr(uart)


def test_received_data_interrupt_without_fifo(uart):
    uart.put(MCR, OPEN)
    uart.put(IER, 1)
    uart.pc.com1.feed(b"ab")
    assert intr(uart) and uart.get(IIR) == 0x04
    assert uart.get(LSR) & 1
    assert uart.get(RBR) == ord("a")
    assert intr(uart)
    assert uart.get(RBR) == ord("b")
    assert not intr(uart)
    assert uart.get(LSR) == 0x60 and uart.get(IIR) == 1


@pytest.mark.parametrize("bits, trigger", [(0x00, 1), (0x40, 4), (0x80, 8), (0xC0, 14)])
def test_fifo_trigger_levels_and_character_timeout(uart, bits, trigger):
    uart.put(MCR, OPEN)
    uart.put(FCR, 0x01 | bits)
    uart.put(IER, 1)
    assert uart.get(IIR) == 0xC1
    uart.pc.com1.feed(b"x" * (trigger - 1))
    if trigger > 1:
        assert uart.get(IIR) == 0xCC and intr(uart)
    uart.pc.com1.feed(b"x")
    assert uart.get(IIR) == 0xC4 and intr(uart)
    for _ in range(trigger):
        assert uart.get(LSR) & 1
        uart.get(RBR)
    assert uart.get(IIR) == 0xC1 and not intr(uart)


def test_interrupt_priorities(uart):
    uart.put(FCR, 0x01)
    uart.put(MCR, 0x10)  # loopback: modem lines drop, deltas come up
    for _ in range(17):
        uart.put(THR, 0x55)
    uart.put(IER, 0x0F)
    assert uart.get(IIR) & 0x0F == 0x06
    assert uart.get(LSR) & 0x02
    assert not uart.get(LSR) & 0x02, "reading LSR clears the overrun"
    assert uart.get(IIR) & 0x0F == 0x04
    while uart.get(LSR) & 1:
        uart.get(RBR)
    assert uart.get(IIR) & 0x0F == 0x02
    assert uart.get(IIR) & 0x0F == 0x00
    assert uart.get(MSR) & 0x0F == 0x0B
    assert uart.get(IIR) & 0x0F == 0x01


# Input

def drain(rig):
    data = bytearray()
    while rig.get(LSR) & 1:
        data.append(rig.get(RBR))
    return bytes(data)


@pytest.mark.parametrize("fifo", [0, 1])
def test_input_of_any_length_arrives_whole(uart, fifo):
    uart.put(FCR, fifo)
    uart.put(MCR, OPEN)
    data = bytes(range(256)) * 20
    assert uart.pc.com1.feed(data) == len(data)
    assert drain(uart) == data
    assert uart.pc.com1.pending_input == 0


def test_input_is_capped_and_says_so(uart):
    assert uart.pc.com1.feed(bytes(INPUT_CAP - 10)) == INPUT_CAP - 10
    assert uart.pc.com1.feed(bytes(100)) == 10
    assert uart.pc.com1.feed(b"more") == 0
    uart.get(RBR)
    assert uart.pc.com1.feed(b"more") == 1


def test_guest_that_never_sets_up_the_modem_gets_input(uart):
    uart.pc.com1.feed(b"hello")
    assert drain(uart) == b"hello"


def test_rts_holds_input_back(uart):
    uart.put(MCR, 0x08)
    uart.put(IER, 1)
    uart.pc.com1.feed(b"hello")
    assert not uart.get(LSR) & 1 and not intr(uart)
    assert uart.get(RBR) == 0
    uart.put(MCR, OPEN)
    assert intr(uart)
    assert uart.get(RBR) == ord("h")
    uart.put(MCR, 0x09)  # what RTS/CTS flow control does when a reader is slow
    assert not intr(uart) and not uart.get(LSR) & 1
    uart.put(MCR, OPEN)
    assert drain(uart) == b"ello"


def test_type_ahead_survives_linux_opening_the_port(uart):
    uart.pc.com1.feed(b"ls\n")
    assert linux_autoconfig(uart) == "16550A"
    # serial8250_clear_fifos, then everything is read once to clear it
    for value in (0x01, 0x07, 0x00):
        uart.put(FCR, value)
    for register in (LSR, RBR, IIR, MSR):
        uart.get(register)
    uart.put(LCR, 3)
    uart.put(MCR, 0x08)
    uart.put(IER, 0x05)
    uart.put(FCR, 0x81)
    assert not intr(uart)
    uart.put(MCR, OPEN)
    assert intr(uart)
    assert drain(uart) == b"ls\n"


# Loopback

def test_loopback_receives_what_it_sends(uart):
    uart.put(FCR, 0x01)
    uart.put(MCR, 0x1F)
    uart.pc.com1.feed(b"from outside")
    for byte in b"0123456789abcdef":
        uart.put(THR, byte)
    assert drain(uart) == b"0123456789abcdef"
    uart.pc.com1.flush()
    assert uart.output == []
    uart.put(MCR, OPEN)
    assert drain(uart) == b"from outside"


def test_fifo_reset_empties_the_receiver(uart):
    uart.put(FCR, 0x01)
    uart.put(MCR, 0x1F)
    uart.put(THR, 1)
    uart.put(FCR, 0x05)  # the transmitter's reset leaves it alone
    assert uart.get(LSR) & 1
    uart.put(FCR, 0x03)
    assert not uart.get(LSR) & 1
    uart.put(THR, 2)
    uart.put(FCR, 0x00)  # so does switching the FIFOs
    assert not uart.get(LSR) & 1


def test_overrun_without_fifo_keeps_the_new_byte(uart):
    uart.put(MCR, 0x1F)
    uart.put(THR, 1)
    uart.put(THR, 2)
    assert uart.get(LSR) & 0x03 == 0x03
    assert uart.get(RBR) == 2


def test_loopback_modem_lines(uart):
    for mcr, msr in ((0x10, 0x00), (0x11, 0x20), (0x12, 0x10), (0x14, 0x40), (0x18, 0x80),
                     (0x1F, 0xF0)):
        uart.put(MCR, mcr)
        assert uart.get(MSR) & 0xF0 == msr
    # Ring is reported at its trailing edge, the others at both.
    uart.get(MSR)
    uart.put(MCR, 0x1B)
    assert uart.get(MSR) == 0xB4
    uart.put(MCR, 0x1F)
    assert uart.get(MSR) == 0xF0
    uart.put(MCR, 0x10)
    assert uart.get(MSR) == 0x0F


def test_loopback_holds_the_interrupt_line(uart):
    uart.put(IER, 2)
    uart.put(MCR, 0x18)
    assert not intr(uart)
    assert uart.get(IIR) == 2


def linux_autoconfig(rig):
    """What drivers/tty/serial/8250 does to find out what sits at a port (with its loop test)."""
    scratch = rig.get(IER)
    rig.put(IER, 0)
    low = rig.get(IER) & 0x0F
    rig.put(IER, 0x0F)
    high = rig.get(IER) & 0x0F
    rig.put(IER, scratch)
    if low != 0 or high != 0x0F:
        return "nothing"
    mcr, lcr = rig.get(MCR), rig.get(LCR)
    rig.put(MCR, 0x10 | 0x0A)
    status = rig.get(MSR) & 0xF0
    rig.put(MCR, mcr)
    if status != 0x90:
        return "nothing"
    rig.put(LCR, 0xBF)
    rig.put(2, 0)  # EFR of chips that have one
    rig.put(LCR, 0)
    rig.put(FCR, 0x01)
    kind = {0: "8250", 2: "16550", 3: "16550A"}.get(rig.get(IIR) >> 6, "unknown")
    if kind == "16550A":
        # An EFR would read 0 here; a 16550A shows IIR or the divisor's neighbour.
        for value in (0x80, 0xBF):
            rig.put(LCR, value)
            if rig.get(2) == 0:
                return "16650"
        # National's super-IO: bit 4 of MCR banked through LCR 0xe0
        rig.put(LCR, 0)
        before = rig.get(MCR)
        rig.put(LCR, 0xE0)
        after = rig.get(2)
        rig.put(LCR, 0)
        if not (before ^ after) & 0x10:
            rig.put(MCR, before ^ 0x10)
            rig.put(LCR, 0xE0)
            after = rig.get(2)
            rig.put(LCR, 0)
            rig.put(MCR, before)
            if (before ^ after) & 0x10:
                return "NS16550A"
        # 64-byte FIFO, then the XScale UART-enable bit of IER
        rig.put(FCR, 0x21)
        if rig.get(IIR) >> 5 == 7:
            return "16750"
        rig.put(FCR, 0x01)
        rig.put(IER, 0x40)
        if rig.get(IER) & 0x40:
            return "XScale"
        rig.put(IER, scratch)
    rig.put(LCR, lcr)
    rig.put(MCR, mcr)
    for value in (0x01, 0x07, 0x00):
        rig.put(FCR, value)
    rig.get(RBR)
    rig.put(IER, 0)
    return kind


@pytest.mark.parametrize("base", [0x3F8, 0x2F8, 0x3E8])
def test_linux_identifies_a_16550a(rig, base):
    rig.get = lambda register: rig.inb(base + register)
    rig.put = lambda register, value: rig.outb(value, base + register)
    assert linux_autoconfig(rig) == "16550A"


def test_linux_finds_nothing_at_the_fourth_port(rig):
    rig.get = lambda register: rig.inb(0x2E8 + register)
    rig.put = lambda register, value: rig.outb(value, 0x2E8 + register)
    assert linux_autoconfig(rig) == "nothing"


# What the core may answer by itself

def test_idle_port_is_polled_without_python(uart):
    uart.put(FCR, 1)
    uart.put(MCR, OPEN)
    kinds = uart.bus.read_kind[BASE:BASE + 8]
    assert set(kinds) == {PUBLISHED}
    uart.pc.com1.feed(b"x")
    assert uart.bus.read_kind[BASE + RBR] == ASK
    assert uart.bus.read_kind[BASE + LSR] == PUBLISHED and uart.get(LSR) == 0x61


def test_registers_with_side_effects_are_asked_for(uart):
    uart.put(IER, 2)
    assert uart.bus.read_kind[BASE + IIR] == ASK
    uart.put(MCR, 0x10)
    uart.put(MCR, 0)
    assert uart.bus.read_kind[BASE + MSR] == ASK
    assert uart.get(MSR) & 0x0F
    assert uart.bus.read_kind[BASE + MSR] == PUBLISHED


def test_shared_line_of_com1_and_com3(rig):
    rig.init_pics()
    for base in (0x3F8, 0x3E8):
        rig.outb(OPEN, base + MCR)
        rig.outb(0x01, base + IER)
    rig.pc.com1.feed(b"a")
    assert rig.take_irq() == 0x34
    rig.pc.com3.feed(b"b")
    rig.inb(0x3F8)
    rig.eoi()
    assert rig.take_irq() is None, "the line never fell: no new edge"
    rig.inb(0x3E8)
    rig.pc.com3.feed(b"c")
    assert rig.take_irq() == 0x34
