# SPDX-License-Identifier: GPL-2.0-or-later
"""The MMIO transport: driven as virtio 1.2, 3.1 and 4.2 say, and at random."""

from __future__ import annotations

import random

import pytest
from transportrig import F_MINE, QUEUE, DriverRig

from bt.errors import InputError
from bt.machine.bus import Bus
from bt.machine.dma import Dma
from bt.machine.machine import Machine
from bt.virtio.device import F_EVENT_IDX, F_INDIRECT_DESC, F_VERSION_1
from bt.virtio.mmio import SIZE, VirtioMmio
from bt.virtio.registers import ACKNOWLEDGE
from bt.virtio.rng import VirtioRng

BASE = 0xFED0_0000
(MAGIC, VERSION, DEVICE, VENDOR, FEATURES, FEATURES_SELECT) = (0, 4, 8, 12, 0x10, 0x14)
(TAKEN, TAKEN_SELECT, SELECT, MAX, NUM, READY, NOTIFY) = (0x20, 0x24, 0x30, 0x34, 0x38, 0x44, 0x50)
(ISR, ACK, STATUS, ADDRESSES, GENERATION, CONFIG) = (0x60, 0x64, 0x70, 0x80, 0xFC, 0x100)


class Rig(DriverRig):
    """A driver of one device in memory."""

    def __init__(self) -> None:
        super().__init__()
        self.bus = Bus()
        self.level = False
        self.bus.claim_mmio(VirtioMmio(self.device, Dma(self.ram, lambda gpa, length: None),
                                       self._line, self.reports.append, base=BASE), BASE, SIZE)

    def _line(self, level: bool) -> None:
        self.level = level

    def get(self, offset: int, size: int = 4) -> int:
        return self.bus.read_mmio(BASE + offset, size)

    def put(self, offset: int, value: int, size: int = 4) -> None:
        self.bus.write_mmio(BASE + offset, size, value)

    def status(self, value: int | None = None) -> int:
        if value is not None:
            self.put(STATUS, value)
        return self.get(STATUS)

    def features(self) -> int:
        value = 0
        for half in range(2):
            self.put(FEATURES_SELECT, half)
            value |= self.get(FEATURES) << 32 * half
        return value

    def agree(self, features: int) -> None:
        for half in range(2):
            self.put(TAKEN_SELECT, half)
            self.put(TAKEN, features >> 32 * half & 0xFFFF_FFFF)

    def set_up(self, index: int = 0, size: int = 8, base: int = QUEUE) -> None:
        self.put(SELECT, index)
        self.put(NUM, size)
        for area in range(3):
            self.put(ADDRESSES + 16 * area, base + 0x1000 * area)
            self.put(ADDRESSES + 16 * area + 4, 0)
        self.put(READY, 1)

    def enabled(self) -> int:
        return self.get(READY)

    def notify(self, index: int = 0) -> None:
        self.put(NOTIFY, index)

    def isr(self) -> int:
        return self.get(ISR)

    def asserted(self) -> bool:
        return self.level


@pytest.fixture
def rig() -> Rig:
    return Rig()


def test_identity(rig: Rig) -> None:
    assert rig.get(MAGIC).to_bytes(4, "little") == b"virt"
    assert (rig.get(VERSION), rig.get(DEVICE)) == (2, 42)
    assert rig.get(VENDOR)
    assert rig.features() == F_MINE | F_VERSION_1 | F_INDIRECT_DESC | F_EVENT_IDX
    rig.put(FEATURES_SELECT, 2)
    assert rig.get(FEATURES) == 0
    for shared_memory in (0xB0, 0xB4, 0xB8, 0xBC):      # 4.2.2: there is none
        assert rig.get(shared_memory) == 0xFFFF_FFFF


def test_queues_as_offered(rig: Rig) -> None:
    for index, size in ((0, 64), (1, 16), (2, 0), (0xFFFF, 0)):
        rig.put(SELECT, index)
        assert (rig.get(MAX), rig.get(READY)) == (size, 0)


def test_a_request(rig: Rig) -> None:
    rig.start()
    rig.offer()
    rig.notify()
    assert rig.used() == 1 and rig.device.notified == [0]
    assert rig.level and rig.get(ISR) == 1
    rig.put(ACK, 2)
    assert rig.level and rig.get(ISR) == 1, "not what it was"
    rig.put(ACK, 1)
    assert not rig.level and rig.get(ISR) == 0


def test_a_queue_is_taken_back_and_given_again(rig: Rig) -> None:
    rig.start()
    rig.offer()
    rig.put(READY, 0)
    assert rig.get(READY) == 0
    rig.notify()
    assert rig.device.notified == [] and rig.used() == 0
    rig.set_up(size=4)
    assert rig.get(READY) == 1
    rig.notify()
    assert rig.device.notified == [0] and rig.used() == 1


def test_device_configuration_and_generation(rig: Rig) -> None:
    assert rig.get(CONFIG, 8) == int.from_bytes(b"configur", "little")
    assert rig.get(CONFIG + 1, 1) == ord("o")
    rig.put(CONFIG + 1, 0x5858, 2)
    assert bytes(rig.device.config) == b"cXXfiguration"
    before = rig.get(GENERATION)
    rig.device.config_changed()
    assert rig.get(GENERATION) != before


def test_there_is_no_such_queue(rig: Rig) -> None:
    rig.start()
    for nowhere in (1, 2, 0xFFFF_FFFF):
        rig.notify(nowhere)
    assert rig.device.notified == []


def test_registers_are_of_32_bits(rig: Rig) -> None:
    for size in (1, 2, 8):
        assert rig.get(MAGIC, size) == 0
        rig.put(STATUS, ACKNOWLEDGE, size)
    assert rig.get(STATUS) == 0
    assert rig.get(STATUS + 1) == 0


def test_any_accesses(rig: Rig) -> None:
    """No sequence of accesses raises, wherever it goes."""
    rng = random.Random(7)
    for round_ in range(40):
        if round_ % 2:
            rig.start()
        for _ in range(300):
            size = rng.choice([1, 2, 4, 4, 4, 8])
            offset = rng.choice([rng.randrange(SIZE), 4 * rng.randrange(SIZE // 4)])
            value = rng.choice([0, 1, 8, 0xF, 0xFFFF, QUEUE, rng.getrandbits(64)])
            if rng.random() < 0.6:
                rig.put(offset, value & ((1 << 8 * size) - 1), size)
            else:
                assert 0 <= rig.get(offset, size) < 1 << 8 * size
            if rng.random() < 0.05:
                at = QUEUE + rng.choice([0, 0x1000, 0x2000]) + rng.randrange(64)
                rig.ram.view[at] = rng.getrandbits(8)


# In a machine -----------------------------------------------------------------------------------


def entropy(machine: Machine) -> VirtioRng:
    return VirtioRng(machine.timers, machine.vcpu.now_ns, bytes)


def test_thirty_two_have_room() -> None:
    machine = Machine(ram_bytes=1 << 20, virtio="mmio")
    for number in range(32):
        machine.add_virtio(entropy(machine))
        assert machine.bus.read_mmio(BASE + 0x1000 * number, 4).to_bytes(4, "little") == b"virt"
    with pytest.raises(InputError, match="no room for one more"):
        machine.add_virtio(entropy(machine))


@pytest.mark.parametrize(("options", "why"), [
    ({"machine": "legacy", "virtio": "mmio"}, "needs --machine pc"),
    ({"engine": "pv", "virtio": "mmio"}, "engine pv has none"),
])
def test_machines_that_have_none(options: dict[str, str], why: str) -> None:
    machine = Machine(ram_bytes=1 << 20, **options)
    with pytest.raises(InputError, match=why):
        machine.add_virtio(entropy(machine))


def test_there_is_no_such_bus() -> None:
    with pytest.raises(InputError, match="one of pci, mmio"):
        Machine(ram_bytes=1 << 20, virtio="isa")
