# SPDX-License-Identifier: GPL-2.0-or-later
"""What a driver may rely on, and what it may not do, on every transport (virtio 1.2, 2 and 3.1)."""

from __future__ import annotations

import pytest
import test_virtio_mmio
import test_virtio_pci
from transportrig import F_MINE, QUEUE, DriverRig

from bt.virtio.device import F_VERSION_1
from bt.virtio.registers import ACKNOWLEDGE, DRIVER, FEATURES_OK, NEEDS_RESET


@pytest.fixture(params=[test_virtio_pci.Rig, test_virtio_mmio.Rig], ids=["pci", "mmio"])
def rig(request: pytest.FixtureRequest) -> DriverRig:
    return request.param()


def test_features_that_were_not_offered(rig: DriverRig) -> None:
    rig.status(ACKNOWLEDGE | DRIVER)
    for features in (F_VERSION_1 | 1, F_MINE, 0):
        rig.agree(features)
        assert not rig.status(ACKNOWLEDGE | DRIVER | FEATURES_OK) & FEATURES_OK
    rig.agree(F_VERSION_1)
    assert rig.status(ACKNOWLEDGE | DRIVER | FEATURES_OK) & FEATURES_OK
    rig.agree(F_VERSION_1 | F_MINE)
    assert rig.device.driver_features == F_VERSION_1, "final"


def test_nothing_before_its_time(rig: DriverRig) -> None:
    rig.set_up()
    rig.offer()
    rig.notify()
    assert rig.device.notified == [] and rig.enabled() == 0
    rig.status(ACKNOWLEDGE | DRIVER)
    rig.agree(F_VERSION_1)
    rig.status(ACKNOWLEDGE | DRIVER | FEATURES_OK)
    rig.set_up()
    rig.notify()
    assert rig.device.notified == [], "not before DRIVER_OK"
    rig.notify(1)
    assert rig.device.notified == [], "not set up"


def test_reset(rig: DriverRig) -> None:
    rig.start()
    rig.offer()
    rig.notify()
    assert rig.status(0) == 0
    assert rig.device.resets and not rig.asserted() and rig.isr() == 0 and rig.enabled() == 0
    rig.notify()
    assert rig.device.notified == [0]
    rig.ram.view[QUEUE:QUEUE + 0x3000] = bytes(0x3000)
    rig.start()
    rig.offer()
    rig.notify()
    assert rig.used() == 1


def test_a_lie_stops_the_device(rig: DriverRig) -> None:
    rig.start()
    rig.offer(number=9)
    rig.notify()
    assert rig.status() & NEEDS_RESET and rig.used() == 0
    assert rig.asserted() and rig.isr() == 2, "a configuration interrupt"
    assert len(rig.reports) == 1 and "echo" in rig.reports[0] and "jumps" in rig.reports[0]
    rig.offer()
    rig.notify()
    assert rig.used() == 0
    rig.ram.view[QUEUE:QUEUE + 0x3000] = bytes(0x3000)
    rig.start()
    assert not rig.status() & NEEDS_RESET
    rig.offer()
    rig.notify()
    assert rig.used() == 1
