# SPDX-License-Identifier: GPL-2.0-or-later
"""Against Intel's 82C54 data sheet. Times are given in ticks of its 1.193182 MHz input."""

import pytest

from bt.devices.pit import time_of

IRQ0 = 0x30


@pytest.fixture
def pit(rig):
    rig.init_pics(icw4=0x03)  # automatic EOI: every edge shows
    rig.advance(time_of(1000))
    return rig


def ticks(rig, count):
    """Go on by so many input clocks, exactly."""
    now = rig.clock.ns * 1193182 // 10**9
    rig.advance(time_of(now + count) - rig.clock.ns)


def program(rig, channel, mode, count, access=3, bcd=0):
    rig.outb(channel << 6 | access << 4 | mode << 1 | bcd, 0x43)
    if access & 1:
        rig.outb(count & 0xFF, 0x40 + channel)
    if access & 2:
        rig.outb(count >> 8 & 0xFF, 0x40 + channel)


def latched(rig, channel):
    rig.outb(channel << 6, 0x43)
    return rig.inb(0x40 + channel) | rig.inb(0x40 + channel) << 8


def status(rig, channel):
    rig.outb(0xE0 | 2 << channel, 0x43)
    return rig.inb(0x40 + channel)


def out(rig, channel=2):
    return status(rig, channel) >> 7


def gate2(rig, level):
    rig.outb(int(level), 0x61)


def drain(rig):
    while rig.take_irq() is not None:
        pass


# Counting and reading

@pytest.mark.parametrize("access, count, expect", [
    (1, 0x80, 0x80 - 10), (2, 0x1200, 0x1200 - 10 >> 8)])
def test_single_byte_access(pit, access, count, expect):
    program(pit, 0, 2, count, access)
    ticks(pit, 11)  # one to load, ten to count
    assert pit.inb(0x40) == expect


def test_latch_holds_the_count_until_it_is_read(pit):
    program(pit, 0, 2, 0x1000)
    ticks(pit, 1 + 0x100)
    pit.outb(0x00, 0x43)
    ticks(pit, 50)
    pit.outb(0x00, 0x43)  # a second latch is ignored
    assert pit.inb(0x40) | pit.inb(0x40) << 8 == 0xF00
    assert pit.inb(0x40) | pit.inb(0x40) << 8 == 0xF00 - 50


def test_read_back_latches_status_then_count_of_several_channels(pit):
    program(pit, 0, 2, 0x1000)
    program(pit, 1, 3, 0x2000)
    ticks(pit, 1)
    pit.outb(0xC0 | 0x06, 0x43)
    ticks(pit, 7)
    assert pit.inb(0x40) == 0xB4
    assert pit.inb(0x40) | pit.inb(0x40) << 8 == 0x1000
    assert pit.inb(0x41) == 0xB6
    assert pit.inb(0x41) | pit.inb(0x41) << 8 == 0x2000


def test_null_count_flag_tells_when_a_count_is_loaded(pit):
    pit.outb(0x34, 0x43)
    assert status(pit, 0) & 0x40
    program(pit, 0, 2, 1000)
    assert status(pit, 0) & 0x40
    ticks(pit, 1)
    assert not status(pit, 0) & 0x40
    pit.outb(0x10, 0x40)
    pit.outb(0x20, 0x40)
    assert status(pit, 0) & 0x40, "waits for the end of the period"
    ticks(pit, 1000)
    assert not status(pit, 0) & 0x40


def test_bcd(pit):
    program(pit, 0, 2, 0x1000, bcd=1)
    ticks(pit, 1 + 1)
    assert latched(pit, 0) == 0x0999
    program(pit, 0, 0, 0, bcd=1)  # 0 is 10,000
    ticks(pit, 1 + 2)
    assert latched(pit, 0) == 0x9998


def test_zero_counts_65536(pit):
    program(pit, 0, 0, 0)
    ticks(pit, 65536)
    assert pit.take_irq() is None
    ticks(pit, 1)
    assert pit.take_irq() == IRQ0


# Modes

def test_mode_0_rises_once_after_n_plus_1(pit):
    program(pit, 0, 0, 100)
    assert out(pit, 0) == 0
    ticks(pit, 100)
    assert pit.take_irq() is None and out(pit, 0) == 0
    ticks(pit, 1)
    assert pit.take_irq() == IRQ0 and out(pit, 0) == 1
    ticks(pit, 10)
    assert latched(pit, 0) == 0xFFF6, "it goes on counting"
    ticks(pit, 70000)
    assert pit.take_irq() is None
    program(pit, 0, 0, 50)
    assert out(pit, 0) == 0
    ticks(pit, 51)
    assert pit.take_irq() == IRQ0


def test_mode_0_new_count_starts_over_and_its_first_byte_stops(pit):
    program(pit, 0, 0, 100)
    ticks(pit, 90)
    pit.outb(200, 0x40)
    ticks(pit, 50)
    assert out(pit, 0) == 0 and pit.take_irq() is None
    pit.outb(0, 0x40)
    ticks(pit, 200)
    assert out(pit, 0) == 0
    ticks(pit, 1)
    assert out(pit, 0) == 1 and pit.take_irq() == IRQ0


def test_mode_0_gate_pauses(pit):
    gate2(pit, 1)
    program(pit, 2, 0, 100)
    ticks(pit, 1 + 40)
    gate2(pit, 0)
    ticks(pit, 500)
    assert latched(pit, 2) == 60
    gate2(pit, 1)
    ticks(pit, 59)
    assert out(pit) == 0
    ticks(pit, 1)
    assert out(pit) == 1


def test_mode_1_one_shot_is_triggered_and_retriggered_by_the_gate(pit):
    gate2(pit, 0)
    program(pit, 2, 1, 100)
    ticks(pit, 300)
    assert out(pit) == 1
    gate2(pit, 1)
    ticks(pit, 1)
    assert out(pit) == 0
    ticks(pit, 60)
    gate2(pit, 0)
    gate2(pit, 1)
    ticks(pit, 100)
    assert out(pit) == 0, "started over"
    ticks(pit, 1)
    assert out(pit) == 1


def test_mode_2_divides_by_n_and_is_low_for_the_last_tick(pit):
    program(pit, 2, 2, 5)
    gate2(pit, 1)
    ticks(pit, 1)
    levels, values = [], []
    for _ in range(10):
        levels.append(out(pit))
        values.append(latched(pit, 2))
        ticks(pit, 1)
    assert levels == [1, 1, 1, 1, 0] * 2
    assert values == [5, 4, 3, 2, 1] * 2


def test_mode_2_new_count_waits_for_the_end_of_the_period(pit):
    program(pit, 0, 2, 1000)
    drain(pit)
    ticks(pit, 1 + 400)
    pit.outb(100, 0x40)
    pit.outb(0, 0x40)
    ticks(pit, 599)
    assert latched(pit, 0) == 1
    assert pit.take_irq() is None
    ticks(pit, 1)
    assert pit.take_irq() == IRQ0
    assert latched(pit, 0) == 100
    ticks(pit, 100)
    assert pit.take_irq() == IRQ0


@pytest.mark.parametrize("count, high", [(6, 3), (7, 4)])
def test_mode_3_is_a_square_wave(pit, count, high):
    program(pit, 2, 3, count)
    gate2(pit, 1)
    ticks(pit, 1)
    levels, values = [], []
    for _ in range(2 * count):
        levels.append(out(pit))
        values.append(latched(pit, 2))
        ticks(pit, 1)
    assert levels == ([1] * high + [0] * (count - high)) * 2
    assert all(value % 2 == 0 for value in values)
    # The data sheet: an odd count has one clock more in the high half, and starts from N - 1.
    assert values[:count] == ([6, 4, 2, 0][:high] + [6, 4, 2][:count - high])


@pytest.mark.parametrize("written_after, expect", [
    (2, [1] * 3 + [0] * 2 + [1] * 2 + [0] * 2),  # in the high half: the low half is short already
    (7, [0] * 3 + [1] * 2 + [0] * 2 + [1] * 2)])  # in the low half, which ends first
def test_mode_3_new_count_waits_for_the_end_of_the_half_period(pit, written_after, expect):
    program(pit, 2, 3, 10)
    gate2(pit, 1)
    ticks(pit, 1 + written_after)
    pit.outb(4, 0x42)
    pit.outb(0, 0x42)
    levels = []
    for _ in expect:
        levels.append(out(pit))
        ticks(pit, 1)
    assert levels == expect


@pytest.mark.parametrize("written_after, rise_after", [(20, 50 - 20 + 10), (70, 100 - 70)])
def test_mode_3_interrupt_after_a_new_count(pit, written_after, rise_after):
    program(pit, 0, 3, 100)
    drain(pit)
    ticks(pit, 1 + written_after)
    pit.outb(20, 0x40)
    pit.outb(0, 0x40)
    ticks(pit, rise_after - 1)
    assert pit.take_irq() is None
    ticks(pit, 1)
    assert pit.take_irq() == IRQ0


@pytest.mark.parametrize("mode", [2, 3])
def test_gate_low_stops_periodic_modes_high_and_its_edge_restarts_them(pit, mode):
    program(pit, 2, mode, 10)
    gate2(pit, 1)
    ticks(pit, 1 + 9)
    assert out(pit) == 0
    gate2(pit, 0)
    assert out(pit) == 1
    ticks(pit, 33)
    assert out(pit) == 1
    gate2(pit, 1)
    ticks(pit, 1)
    assert latched(pit, 2) == 10


def test_mode_4_strobes_once(pit):
    program(pit, 2, 4, 10)
    gate2(pit, 1)
    program(pit, 2, 4, 10)
    levels = []
    for _ in range(14):
        levels.append(out(pit))
        ticks(pit, 1)
    assert levels == [1] * 11 + [0] + [1, 1]


def test_mode_5_strobes_after_a_trigger(pit):
    gate2(pit, 0)
    program(pit, 2, 5, 10)
    ticks(pit, 40)
    assert out(pit) == 1
    gate2(pit, 1)
    ticks(pit, 1)
    levels = []
    for _ in range(13):
        levels.append(out(pit))
        ticks(pit, 1)
    assert levels == [1] * 10 + [0] + [1, 1]


# Interrupts

@pytest.mark.parametrize("mode", [2, 3])
def test_linux_periodic_tick(pit, mode):
    """1193182 Hz / 4772 = 250 Hz."""
    program(pit, 0, mode, 4772)
    drain(pit)
    start = pit.clock.ns
    count = 0
    for _ in range(1000):
        ticks(pit, 4772)
        count += pit.take_irq() == IRQ0
    assert count in (999, 1000)
    assert abs(pit.clock.ns - start - 4 * 10**9) < 10**6


def test_linux_oneshot_in_mode_4(pit):
    """Its clockevent sets mode 4 once and then only writes counts."""
    pit.outb(0x38, 0x43)
    drain(pit)
    for count in (0x20, 0x1234, 0xFFFF):
        pit.outb(count & 0xFF, 0x40)
        pit.outb(count >> 8, 0x40)
        ticks(pit, count + 1)
        assert pit.take_irq() is None
        ticks(pit, 1)
        assert pit.take_irq() == IRQ0
        ticks(pit, 200000)
        assert pit.take_irq() is None


def test_reprogramming_a_oneshot_moves_it(pit):
    program(pit, 0, 4, 1000)
    drain(pit)
    ticks(pit, 500)
    pit.outb(0xE8, 0x40)
    pit.outb(0x03, 0x40)
    ticks(pit, 1001)
    assert pit.take_irq() is None
    ticks(pit, 1)
    assert pit.take_irq() == IRQ0


def test_late_vmm_gets_one_edge_and_the_old_phase(pit):
    program(pit, 0, 2, 10000)
    drain(pit)
    ticks(pit, 1)
    pit.oversleep(time_of(25 * 10000 + 3000))
    assert pit.take_irq() == IRQ0
    pit.timers.run_due()
    assert pit.take_irq() is None, "24 ticks are lost, not piled up"
    ticks(pit, 6990)
    assert pit.take_irq() is None
    ticks(pit, 20)
    assert pit.take_irq() == IRQ0


def test_fast_periodic_channel_cannot_flood_the_vmm(pit):
    program(pit, 0, 2, 2)
    drain(pit)
    fired = 0
    end = pit.clock.ns + 10_000_000
    while (due := pit.timers.next_deadline()) <= end:
        pit.clock.ns = due
        pit.timers.run_due()
        fired += 1
    assert 190 <= fired <= 201


def test_shutdown_in_mode_0_takes_a_request_back(rig):
    rig.init_pics()
    program(rig, 0, 2, 1000)
    rig.advance(time_of(1500))
    assert rig.pc.pic.intr
    rig.outb(0x30, 0x43)
    assert not rig.pc.pic.intr


# Port 0x61

def test_port_61_bits(rig):
    rig.outb(0xFF, 0x61)
    assert rig.inb(0x61) & 0x0F == 0x0F
    assert not rig.inb(0x61) & 0xC0
    rig.outb(0, 0x61)
    assert rig.inb(0x61) & 0x0F == 0
    seen = {rig.inb(0x61) & 0x10}
    for _ in range(4):
        rig.advance(10_000)
        seen.add(rig.inb(0x61) & 0x10)
    assert seen == {0, 0x10}


def test_linux_tsc_calibration_by_channel_2(pit):
    """Gate on, speaker off, mode 0, then wait for the output bit of port 0x61."""
    pit.outb(pit.inb(0x61) & ~0x02 | 0x01, 0x61)
    latch = 1193182 // (1000 // 10)
    program(pit, 2, 0, latch)
    start = pit.clock.ns
    while not pit.inb(0x61) & 0x20:
        pit.advance(1000)
    assert abs(pit.clock.ns - start - 10_000_000) < 20_000


def test_linux_quick_calibration_sees_the_high_byte_step(pit):
    pit.outb(pit.inb(0x61) & ~0x02 | 0x01, 0x61)
    program(pit, 2, 0, 0xFFFF)
    pit.inb(0x42)
    pit.inb(0x42)
    steps = []
    for _ in range(3000):
        pit.advance(1000)
        pit.inb(0x42)
        msb = pit.inb(0x42)
        if not steps or steps[-1] != msb:
            steps.append(msb)
    assert steps == list(range(0xFF, steps[-1] - 1, -1))
    assert len(steps) == 14  # 3 ms are 3,579 ticks: 14 high bytes
