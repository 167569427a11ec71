# SPDX-License-Identifier: GPL-2.0-or-later
"""ACPI's fixed hardware against ACPI 6.5, 4.8.3; and hostile accesses."""

from __future__ import annotations

import pytest
from devicerig import MS, SECOND, FakeClock
from hypothesis import given, settings
from hypothesis import strategies as st

from bt.devices.acpi_pm import HZ, PM1_CONTROL, PM1_EVENT, PM_TIMER, AcpiPm
from bt.machine.bus import Bus
from bt.machine.timers import TimerQueue


class Rig:
    def __init__(self):
        self.bus = Bus()
        self.clock = FakeClock()
        self.timers = TimerQueue(self.clock)
        self.sci = []
        self.offs = 0
        self.pm = AcpiPm(self.bus, self.clock, self.timers, self.sci.append)
        self.pm.on_power_off = self._off

    def _off(self):
        self.offs += 1

    def r(self, port, size=2):
        return self.bus.read(port, size)

    def w(self, port, value, size=2):
        self.bus.write(port, size, value)

    def advance(self, ns):
        end = self.clock.ns + ns
        while (due := self.timers.next_deadline()) is not None and due <= end:
            self.clock.ns = max(self.clock.ns, due)
            self.timers.run_due()
        self.clock.ns = end


@pytest.fixture
def rig():
    return Rig()


def test_it_is_always_in_acpi_mode(rig):
    assert rig.r(PM1_CONTROL) == 1
    rig.w(PM1_CONTROL, 0)
    assert rig.r(PM1_CONTROL) == 1


def test_power_off(rig):
    rig.w(PM1_CONTROL, 5 << 10 | 1)               # Linux: the type first, then the type and SLP_EN
    assert rig.offs == 0 and rig.r(PM1_CONTROL) == 5 << 10 | 1
    rig.w(PM1_CONTROL, 5 << 10 | 1 << 13 | 1)
    assert rig.offs == 1
    assert not rig.r(PM1_CONTROL) & 1 << 13       # write-only


def test_power_off_in_one_write_and_other_states_do_nothing(rig):
    for kind in (0, 1, 3, 4, 6, 7):
        rig.w(PM1_CONTROL, kind << 10 | 1 << 13)
    assert rig.offs == 0
    rig.w(PM1_CONTROL, 5 << 10 | 1 << 13)
    assert rig.offs == 1


def test_timer(rig):
    assert rig.r(PM_TIMER, 4) == 0
    rig.advance(SECOND)
    assert rig.r(PM_TIMER, 4) == HZ
    rig.advance(9 * SECOND)
    assert rig.r(PM_TIMER, 4) == 10 * HZ & 0xFFFFFF
    assert rig.r(PM_TIMER + 1, 1) == 10 * HZ >> 8 & 0xFF
    rig.w(PM_TIMER, 0, 4)
    assert rig.r(PM_TIMER, 4) == 10 * HZ & 0xFFFFFF


def test_timer_event(rig):
    half = (1 << 23) * SECOND // HZ
    assert rig.timers.next_deadline() is None
    rig.advance(half + MS)
    assert rig.r(PM1_EVENT) == 1                  # seen when somebody looks
    rig.w(PM1_EVENT, 1)
    assert rig.r(PM1_EVENT) == 0
    rig.w(PM1_EVENT + 2, 1)
    assert rig.r(PM1_EVENT + 2) == 1
    assert not any(rig.sci)
    rig.advance(half)
    assert rig.sci[-1]
    rig.w(PM1_EVENT, 0)
    assert rig.sci[-1]                            # 0 clears nothing
    rig.w(PM1_EVENT, 1)
    assert not rig.sci[-1]
    rig.w(PM1_EVENT + 2, 0)
    rig.advance(3 * half)
    assert not rig.sci[-1] and rig.r(PM1_EVENT) == 1
    rig.w(PM1_EVENT + 2, 1)
    assert rig.sci[-1]


def test_enables_of_events_that_never_come_can_be_set(rig):
    """ACPICA enables the global lock's event and looks whether that worked."""
    rig.w(PM1_EVENT + 2, 0xFFFF)
    assert rig.r(PM1_EVENT + 2) == 1 | 1 << 5 | 1 << 10


PORTS = st.integers(PM1_EVENT - 2, PM_TIMER + 5)
STEP = st.one_of(
    st.tuples(st.just("w"), PORTS, st.sampled_from([1, 2, 4]), st.integers(0, 0xFFFFFFFF)),
    st.tuples(st.just("r"), PORTS, st.sampled_from([1, 2, 4])),
    st.tuples(st.just("t"), st.sampled_from([1, MS, SECOND, 10**15])))


@settings(max_examples=200, deadline=None)
@given(st.lists(STEP, max_size=60))
def test_no_guest_can_upset_it(steps):
    rig = Rig()
    for step in steps:
        if step[0] == "w":
            rig.bus.write(*step[1:])
        elif step[0] == "r":
            assert 0 <= rig.bus.read(*step[1:]) < 1 << 8 * step[2]
        else:
            rig.clock.ns += step[1]
            rig.timers.run_due()
        status, enable = rig.r(PM1_EVENT), rig.r(PM1_EVENT + 2)
        rig.timers.run_due()
        if step[0] != "r":
            rig.pm._drive()
            assert (rig.sci[-1] if rig.sci else False) == bool(status & enable)
        assert len(rig.timers._heap) <= 1
