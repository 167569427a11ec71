# SPDX-License-Identifier: GPL-2.0-or-later
"""Against Intel's 8259A data sheet and what kernels rely on."""

import pytest

IRR, ISR = 0x0A, 0x0B  # OCW3


def chip_register(rig, ocw3, slave=False):
    port = 0xA0 if slave else 0x20
    rig.outb(ocw3, port)
    return rig.inb(port)


def pulse(rig, line):
    rig.pc.pic.set_irq(line, False)
    rig.pc.pic.set_irq(line, True)


def test_nothing_interrupts_before_initialization(rig):
    for line in range(16):
        pulse(rig, line)
    assert not rig.pc.pic.intr


def test_linux_finds_a_pic(rig):
    """Linux writes a mask and wants it back, on a chip it has not initialized."""
    rig.outb(0xFF, 0xA1)
    rig.outb(0xFB, 0x21)
    assert rig.inb(0x21) == 0xFB


def test_linux_initialization_and_one_interrupt_of_each_chip(rig):
    rig.outb(0xFF, 0x21)
    for value, port in ((0x11, 0x20), (0x30, 0x21), (0x04, 0x21), (0x01, 0x21),
                        (0x11, 0xA0), (0x38, 0xA1), (0x02, 0xA1), (0x01, 0xA1)):
        rig.outb(value, port)
    rig.outb(0xFA, 0x21)  # lines 0 and 2
    rig.outb(0xFE, 0xA1)  # line 8
    pulse(rig, 1)
    assert rig.take_irq() is None, "line 1 is masked"
    pulse(rig, 0)
    assert rig.take_irq() == 0x30
    rig.outb(0x60, 0x20)  # specific EOI, line 0
    pulse(rig, 8)
    assert rig.take_irq() == 0x38
    assert chip_register(rig, ISR) == 0x04
    assert chip_register(rig, ISR, slave=True) == 0x01
    rig.outb(0x60, 0xA0)
    rig.outb(0x62, 0x20)
    assert chip_register(rig, ISR) == chip_register(rig, ISR, slave=True) == 0


def test_vector_base_ignores_the_low_bits(rig):
    rig.outb(0x11, 0x20)
    for value in (0x37, 4, 1, 0):
        rig.outb(value, 0x21)
    pulse(rig, 5)
    assert rig.take_irq() == 0x35


def test_single_mode_skips_icw3_and_icw1_without_ic4_skips_icw4(rig):
    rig.outb(0x12, 0x20)
    rig.outb(0x40, 0x21)
    rig.outb(0x77, 0x21)
    assert rig.inb(0x21) == 0x77, "already the mask"


def test_cascaded_without_icw4(rig):
    rig.outb(0x10, 0x20)
    for value in (0x40, 0x04, 0x77):
        rig.outb(value, 0x21)
    assert rig.inb(0x21) == 0x77, "the word after ICW3 is the mask"


def test_priority_and_nesting(rig):
    rig.init_pics()
    pulse(rig, 5)
    pulse(rig, 3)
    assert rig.take_irq() == 0x33
    assert rig.take_irq() is None, "5 waits for 3"
    pulse(rig, 1)
    assert rig.take_irq() == 0x31, "1 interrupts 3"
    rig.eoi()  # ends 1
    assert rig.take_irq() is None
    rig.eoi()  # ends 3
    assert rig.take_irq() == 0x35


def test_mask_holds_a_request_back(rig):
    rig.init_pics(imr=(0x20, 0))
    pulse(rig, 5)
    assert rig.take_irq() is None
    assert chip_register(rig, IRR) == 0x20
    rig.outb(0, 0x21)
    assert rig.take_irq() == 0x35
    assert chip_register(rig, IRR) == 0


def test_edge_line_held_high_interrupts_once(rig):
    rig.init_pics()
    pulse(rig, 5)
    assert rig.take_irq() == 0x35
    rig.eoi()
    rig.pc.pic.set_irq(5, True)
    assert rig.take_irq() is None
    pulse(rig, 5)
    assert rig.take_irq() == 0x35


def test_level_line_held_high_interrupts_again(rig):
    rig.init_pics()
    rig.outb(0x20, 0x4D0)
    assert rig.inb(0x4D0) == 0x20
    rig.pc.pic.set_irq(5, True)
    assert rig.take_irq() == 0x35
    assert rig.take_irq() is None
    rig.eoi()
    assert rig.take_irq() == 0x35
    rig.pc.pic.set_irq(5, False)
    rig.eoi()
    assert rig.take_irq() is None


def test_elcr_keeps_the_pcs_own_lines_edge_triggered(rig):
    rig.outb(0xFF, 0x4D0)
    rig.outb(0xFF, 0x4D1)
    assert (rig.inb(0x4D0), rig.inb(0x4D1)) == (0xF8, 0xDE)


@pytest.mark.parametrize("line, vector, served", [(3, 0x37, (0, 0)), (11, 0x3F, (4, 0))])
def test_spurious_interrupt_when_the_line_falls_before_the_acknowledge(rig, line, vector, served):
    """From the slave it is vector 15, and the master does have its line 2 in service."""
    rig.init_pics()
    pulse(rig, line)
    assert rig.pc.pic.intr
    if line < 8:
        rig.pc.pic.set_irq(line, False)
        assert not rig.pc.pic.intr
    else:
        # The master was told of the slave's request, then the slave's mask took it back: the
        # chips see that between the two halves of the acknowledge.
        rig.pc.pic._slave.imr = 0xFF
    assert rig.pc.pic.acknowledge() == vector
    assert (chip_register(rig, ISR), chip_register(rig, ISR, slave=True)) == served


def test_two_requests_of_the_slave_are_both_served(rig):
    rig.init_pics()
    pulse(rig, 12)
    pulse(rig, 9)
    assert rig.take_irq() == 0x39
    rig.eoi(slave=True)
    assert rig.take_irq() == 0x3C
    rig.eoi(slave=True)
    assert rig.take_irq() is None


def test_special_fully_nested_mode_lets_the_slave_interrupt_itself(rig):
    rig.init_pics()
    pulse(rig, 12)
    assert rig.take_irq() == 0x3C
    pulse(rig, 9)
    assert rig.take_irq() is None
    rig.init_pics(icw4=0x11)
    pulse(rig, 12)
    assert rig.take_irq() == 0x3C
    pulse(rig, 9)
    assert rig.take_irq() == 0x39


def test_automatic_eoi(rig):
    rig.init_pics(icw4=0x03)
    pulse(rig, 3)
    pulse(rig, 5)
    assert rig.take_irq() == 0x33
    assert chip_register(rig, ISR) == 0
    assert rig.take_irq() == 0x35
    pulse(rig, 12)
    pulse(rig, 9)
    assert [rig.take_irq(), rig.take_irq(), rig.take_irq()] == [0x39, 0x3C, None]


def test_specific_eoi_out_of_order(rig):
    rig.init_pics()
    pulse(rig, 5)
    assert rig.take_irq() == 0x35
    pulse(rig, 2 + 1)
    assert rig.take_irq() == 0x33
    rig.outb(0x65, 0x20)
    assert chip_register(rig, ISR) == 0x08


def test_rotation_on_eoi_makes_the_served_line_last(rig):
    rig.init_pics()
    pulse(rig, 4)
    assert rig.take_irq() == 0x34
    rig.outb(0xA0, 0x20)  # rotate on non-specific EOI
    pulse(rig, 4)
    pulse(rig, 5)
    pulse(rig, 3)
    assert rig.take_irq() == 0x35
    rig.eoi()
    assert rig.take_irq() == 0x33
    rig.eoi()
    assert rig.take_irq() == 0x34


def test_set_priority_command(rig):
    rig.init_pics()
    rig.outb(0xC5, 0x20)  # line 5 lowest, so 6 highest
    pulse(rig, 0)
    pulse(rig, 6)
    assert rig.take_irq() == 0x36
    assert rig.take_irq() is None
    rig.eoi()
    assert rig.take_irq() == 0x30


def test_rotation_in_automatic_eoi_mode(rig):
    rig.init_pics(icw4=0x03)
    rig.outb(0x80, 0x20)
    pulse(rig, 3)
    assert rig.take_irq() == 0x33
    pulse(rig, 3)
    pulse(rig, 6)
    assert rig.take_irq() == 0x36, "3 has become the last"


def test_special_mask_mode_lets_lower_lines_through_a_masked_one(rig):
    rig.init_pics()
    pulse(rig, 1)
    assert rig.take_irq() == 0x31
    pulse(rig, 6)
    assert rig.take_irq() is None
    rig.outb(0x68, 0x20)
    rig.outb(0x02, 0x21)
    assert rig.take_irq() == 0x36
    rig.outb(0x20, 0x20)  # does not end the masked line 1
    assert chip_register(rig, ISR) == 0x02
    rig.outb(0x48, 0x20)
    rig.outb(0x20, 0x20)
    assert chip_register(rig, ISR) == 0


def test_poll_command(rig):
    rig.init_pics()
    rig.outb(0x0C, 0x20)
    assert rig.inb(0x20) == 0
    pulse(rig, 5)
    rig.outb(0x0C, 0x20)
    assert rig.inb(0x20) == 0x85
    assert chip_register(rig, ISR) == 0x20
    assert rig.take_irq() is None
    rig.eoi()
    # Either port answers a poll, and then the mask reads again.
    pulse(rig, 6)
    rig.outb(0x0C, 0x20)
    assert rig.inb(0x21) == 0x86
    assert rig.inb(0x21) == 0


def test_icw1_forgets_everything(rig):
    rig.init_pics()
    pulse(rig, 3)
    assert rig.take_irq() == 0x33
    rig.pc.pic.set_irq(6, True)
    rig.init_pics()
    assert rig.take_irq() is None, "an edge seen before does not count"
    assert chip_register(rig, ISR) == 0
    pulse(rig, 6)
    assert rig.take_irq() == 0x36


def test_intr_output_is_reported_on_change_only(rig):
    levels = []
    rig.init_pics()
    rig.pc.pic.on_intr = levels.append
    pulse(rig, 3)
    rig.pc.pic.set_irq(4, True)
    rig.pc.pic.acknowledge()
    assert levels == [True, False]
    rig.eoi()
    assert levels == [True, False, True]


def test_cascade_line_cannot_be_driven_from_outside(rig):
    rig.init_pics()
    rig.pc.pic.set_irq(2, True)
    assert not rig.pc.pic.intr
