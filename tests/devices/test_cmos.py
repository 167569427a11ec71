# SPDX-License-Identifier: GPL-2.0-or-later
"""Against the MC146818A data sheet."""

from calendar import timegm

import pytest
from devicerig import MS, SECOND, Rig

IRQ8 = 0x38


def get(rig, register):
    rig.outb(register, 0x70)
    return rig.inb(0x71)


def put(rig, register, value):
    rig.outb(register, 0x70)
    rig.outb(value, 0x71)


def now(rig):
    """Century, year, month, day, hours, minutes, seconds as bytes."""
    return bytes(get(rig, r) for r in (0x32, 9, 8, 7, 4, 2, 0)).hex()


def at(*date):
    return Rig(wallclock_s=timegm(date))


def test_date_in_bcd_with_the_weekday():
    rig = at(2024, 2, 28, 23, 59, 58)
    assert now(rig) == "20240228235958"
    assert get(rig, 6) == 4, "a Wednesday; Sunday is 1"
    rig.advance(2 * SECOND)
    assert now(rig) == "20240229000000"
    rig.advance(86400 * SECOND)
    assert now(rig) == "20240301000000"


def test_binary_mode():
    rig = at(2031, 12, 29, 21, 45, 59)
    put(rig, 11, 0x06)
    assert [get(rig, r) for r in (9, 8, 7, 4, 2, 0)] == [31, 12, 29, 21, 45, 59]
    assert get(rig, 0x32) == 0x20


def test_registers_a_to_d():
    rig = at(2024, 1, 1, 0, 0, 0)
    assert [get(rig, r) for r in (10, 11, 12, 13)] == [0x26, 0x02, 0, 0x80]
    put(rig, 10, 0xAF)
    put(rig, 13, 0)
    assert (get(rig, 10), get(rig, 13)) == (0x2F, 0x80)
    put(rig, 11, 0x00)
    assert get(rig, 11) == 0x02, "24-hour mode only"


def test_update_in_progress_precedes_the_update_and_never_sticks():
    rig = at(2024, 1, 1, 0, 0, 0)
    assert not get(rig, 10) & 0x80
    rig.advance(SECOND - 100_000)
    assert get(rig, 10) & 0x80
    assert get(rig, 0) == 0
    rig.advance(100_000)
    assert not get(rig, 10) & 0x80
    assert get(rig, 0) == 1
    put(rig, 11, 0x82)
    rig.advance(SECOND - 1000)
    assert not get(rig, 10) & 0x80, "SET stops updates"


def test_linux_sets_the_clock():
    rig = at(1999, 12, 31, 23, 59, 59)
    put(rig, 11, get(rig, 11) | 0x80)
    frequency = get(rig, 10)
    put(rig, 10, frequency | 0x70)
    rig.advance(5 * SECOND)
    for register, value in ((9, 0x30), (8, 0x02), (7, 0x28), (4, 0x13), (2, 0x14), (0, 0x15),
                            (0x32, 0x20)):
        put(rig, register, value)
    assert now(rig) == "20300228131415"
    put(rig, 11, get(rig, 11) & 0x7F)
    put(rig, 10, frequency)
    rig.advance(86400 * SECOND)
    assert now(rig) == "20300301131415"


def test_garbage_in_the_time_registers_is_not_taken():
    rig = at(2024, 5, 6, 7, 8, 9)
    put(rig, 11, 0x82)
    for register in (0, 2, 4, 7, 8, 9, 0x32):
        put(rig, register, 0xFF)
    put(rig, 11, 0x02)
    assert now(rig) == "20240506070809"
    put(rig, 8, 0x99)
    assert now(rig) == "20240506070809"


def test_dates_beyond_the_last_century_stand_still():
    rig = Rig(wallclock_s=10**15)
    rig.advance(10 * SECOND)
    assert now(rig) == "99991231235959"


def test_memory_bytes_and_index_bit_7():
    rig = at(2024, 1, 1, 0, 0, 0)
    put(rig, 0x0F, 0x5A)  # shutdown status
    put(rig, 0x7F, 0xA5)
    assert get(rig, 0x0F | 0x80) == 0x5A
    assert get(rig, 0xFF) == 0xA5
    assert rig.inb(0x70) == 0xFF


@pytest.mark.parametrize("mb, base, extended, above_16", [
    (1, 640, 0, 0), (16, 640, 15 << 10, 0), (96, 640, 0xFFFF, 80 << 4), (2048, 640, 0xFFFF,
                                                                       2032 << 4),
    (8192, 640, 0xFFFF, 0xFFFF)])
def test_memory_size(mb, base, extended, above_16):
    rig = Rig(ram_size=mb << 20)

    def word(register):
        return get(rig, register) | get(rig, register + 1) << 8

    assert (word(0x15), word(0x17), word(0x30), word(0x34)) == (base, extended, extended, above_16)
    checksum = sum(get(rig, r) for r in range(0x10, 0x2E)) & 0xFFFF
    assert get(rig, 0x2E) << 8 | get(rig, 0x2F) == checksum


# Interrupts

@pytest.fixture
def clocked():
    rig = at(2024, 1, 1, 0, 0, 0)
    rig.init_pics(icw4=0x03)
    get(rig, 12)
    return rig


def test_update_ended_interrupt(clocked):
    put(clocked, 11, 0x12)
    clocked.advance(SECOND - 1)
    assert clocked.take_irq() is None
    clocked.advance(1)
    assert clocked.take_irq() == IRQ8
    clocked.advance(3 * SECOND)
    assert clocked.take_irq() is None, "the line stays up until register C is read"
    assert get(clocked, 12) & 0xB0 == 0x90
    assert not get(clocked, 12) & 0x90
    clocked.advance(SECOND)
    assert clocked.take_irq() == IRQ8


def test_flags_are_set_without_being_enabled(clocked):
    clocked.advance(1500 * MS)
    assert get(clocked, 12) == 0x50  # update ended, periodic at 1024 Hz; no interrupt
    assert clocked.take_irq() is None
    assert clocked.timers.next_deadline() is None


def test_alarm(clocked):
    for register, value in ((1, 0x30), (3, 0x01), (5, 0xC0)):  # at any hour, xx:01:30
        put(clocked, register, value)
    put(clocked, 11, 0x22)
    clocked.advance(90 * SECOND - 1)
    assert clocked.take_irq() is None
    clocked.advance(1)
    assert clocked.take_irq() == IRQ8
    assert get(clocked, 12) & 0xA0 == 0xA0
    clocked.advance(3600 * SECOND)
    assert clocked.take_irq() == IRQ8


@pytest.mark.parametrize("alarm, after_s", [
    ((0xFF, 0xFF, 0xFF), 1), ((0x05, 0xFF, 0xFF), 5), ((0x00, 0x00, 0xFF), 3600),
    ((0xFF, 0x59, 0x23), 23 * 3600 + 59 * 60), ((0x00, 0x00, 0x00), 86400), ((0x61, 0, 0), None)])
def test_alarm_wildcards(clocked, alarm, after_s):
    for register, value in zip((1, 3, 5), alarm, strict=True):
        put(clocked, register, value)
    put(clocked, 11, 0x22)
    deadline = clocked.timers.next_deadline()
    assert deadline == (None if after_s is None else after_s * SECOND)


def test_periodic_interrupt_at_64_hz(clocked):
    put(clocked, 10, 0x2A)
    put(clocked, 11, 0x42)
    count = 0
    for _ in range(1000):
        clocked.advance(MS)
        if clocked.take_irq() == IRQ8:
            assert get(clocked, 12) & 0xC0 == 0xC0
            count += 1
    assert count == 64


@pytest.mark.parametrize("rate, hz", [(1, 256), (2, 128), (3, 8192), (6, 1024), (15, 2)])
def test_periodic_rates(clocked, rate, hz):
    put(clocked, 10, 0x20 | rate)
    put(clocked, 11, 0x42)
    assert clocked.timers.next_deadline() == SECOND // hz


def test_set_clears_update_interrupts(clocked):
    put(clocked, 11, 0x12)
    put(clocked, 11, 0x92)
    assert get(clocked, 11) == 0x82
    clocked.advance(5 * SECOND)
    assert clocked.take_irq() is None


def test_enabling_an_interrupt_whose_flag_is_up_raises_it(clocked):
    clocked.advance(SECOND)
    put(clocked, 11, 0x12)
    assert clocked.take_irq() == IRQ8
    put(clocked, 11, 0x02)
    assert not get(clocked, 12) & 0x80
