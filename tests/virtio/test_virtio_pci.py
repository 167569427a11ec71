# SPDX-License-Identifier: GPL-2.0-or-later
"""The PCI transport: found by its capabilities, driven as virtio 1.2, 3.1 says, and at random."""

from __future__ import annotations

import random

import pytest
from transportrig import F_MINE, QUEUE, DriverRig

from bt.devices.pci import COMMAND_IO, COMMAND_MASTER, COMMAND_MEMORY, PciHost
from bt.machine.bus import Bus
from bt.machine.dma import Dma
from bt.virtio.device import F_EVENT_IDX, F_INDIRECT_DESC, F_VERSION_1
from bt.virtio.pci import VirtioPci
from bt.virtio.registers import ACKNOWLEDGE


class Rig(DriverRig):
    """A driver on a PCI bus."""

    def __init__(self, *, msix: bool = True) -> None:
        super().__init__()
        self.bus = Bus()
        self.lines = [False] * 4
        self.messages: list[tuple[int, int]] = []
        self.host = PciHost(self.bus, [self._line(n) for n in range(4)], (10, 11, 10, 11))
        self.host.on_message = lambda address, data: self.messages.append((address, data))
        self.function = VirtioPci(self.device, Dma(self.ram, lambda gpa, length: None),
                                  self.reports.append, msix=msix)
        self.slot = self.host.add(self.function)
        self.config_write(4, COMMAND_IO | COMMAND_MEMORY | COMMAND_MASTER, 2)
        self.structures = self._find()

    def _line(self, number: int):
        def drive(level: bool) -> None:
            self.lines[number] = level
        return drive

    def _select(self, register: int) -> None:
        self.bus.write(0xCF8, 4, 1 << 31 | self.slot << 11 | register & ~3)

    def config_read(self, register: int, size: int = 4) -> int:
        self._select(register)
        return self.bus.read(0xCFC + (register & 3), size)

    def config_write(self, register: int, value: int, size: int = 4) -> None:
        self._select(register)
        self.bus.write(0xCFC + (register & 3), size, value)

    def _find(self) -> dict[int, tuple[int, int, int]]:
        """{cfg_type: (address, length, capability offset)} by walking the capability list."""
        found = {}
        at = self.config_read(0x34, 1)
        while at:
            if self.config_read(at, 1) == 9:
                kind, bar = self.config_read(at + 3, 1), self.config_read(at + 4, 1)
                base = self.config_read(0x10 + 4 * bar) & ~15
                found[kind] = (base + self.config_read(at + 8), self.config_read(at + 12), at)
            at = self.config_read(at + 1, 1)
        return found

    def get(self, kind: int, offset: int, size: int) -> int:
        return self.bus.read_mmio(self.structures[kind][0] + offset, size)

    def put(self, kind: int, offset: int, size: int, value: int) -> None:
        self.bus.write_mmio(self.structures[kind][0] + offset, size, value)

    def status(self, value: int | None = None) -> int:
        if value is not None:
            self.put(1, 20, 1, value)
        return self.get(1, 20, 1)

    def features(self) -> int:
        value = 0
        for half in range(2):
            self.put(1, 0, 4, half)
            value |= self.get(1, 4, 4) << 32 * half
        return value

    def agree(self, features: int) -> None:
        for half in range(2):
            self.put(1, 8, 4, half)
            self.put(1, 12, 4, features >> 32 * half & 0xFFFFFFFF)

    def set_up(self, index: int = 0, size: int = 8, base: int = QUEUE) -> None:
        self.put(1, 22, 2, index)
        self.put(1, 24, 2, size)
        for at, address in ((32, base), (40, base + 0x1000), (48, base + 0x2000)):
            self.put(1, at, 4, address)
            self.put(1, at + 4, 4, 0)
        self.put(1, 28, 2, 1)

    def notify(self, index: int = 0) -> None:
        self.put(2, 4 * index, 2, index)

    def enabled(self) -> int:
        return self.get(1, 28, 2)

    def isr(self) -> int:
        return self.get(3, 0, 1)

    def asserted(self) -> bool:
        return any(self.lines)


@pytest.fixture
def rig() -> Rig:
    return Rig()


def test_identity(rig: Rig) -> None:
    assert rig.config_read(0) == 0x1AF4 | (0x1040 + 42) << 16
    assert rig.config_read(8, 1) >= 1, "a device that is not transitional has revision 1 or more"
    assert set(rig.structures) == {1, 2, 3, 4, 5}
    assert rig.features() == F_MINE | F_VERSION_1 | F_INDIRECT_DESC | F_EVENT_IDX
    assert rig.get(1, 18, 2) == 2


def test_queues_as_offered(rig: Rig) -> None:
    for index, size in ((0, 64), (1, 16), (2, 0), (0xFFFF, 0)):
        rig.put(1, 22, 2, index)
        assert rig.get(1, 24, 2) == size
    rig.put(1, 22, 2, 0)
    rig.put(1, 24, 2, 8)
    assert rig.get(1, 24, 2) == 8


def test_a_request_by_the_interrupt_pin(rig: Rig) -> None:
    rig.start()
    rig.offer()
    rig.notify()
    assert rig.used() == 1 and rig.device.notified == [0]
    assert any(rig.lines)
    assert rig.get(3, 0, 1) == 1
    assert not any(rig.lines) and rig.get(3, 0, 1) == 0, "reading acknowledges"


def test_a_request_by_msix(rig: Rig) -> None:
    at = rig.config_read(0x34, 1)
    while rig.config_read(at, 1) != 0x11:
        at = rig.config_read(at + 1, 1)
    table = rig.config_read(0x14) & ~15
    for vector in range(3):
        rig.bus.write_mmio(table + 16 * vector, 8, 0xFEE00000)
        rig.bus.write_mmio(table + 16 * vector + 8, 4, 0x40 + vector)
        rig.bus.write_mmio(table + 16 * vector + 12, 4, 0)
    rig.config_write(at + 2, 0x8000, 2)
    rig.start()
    rig.put(1, 22, 2, 0)
    rig.put(1, 26, 2, 3)
    assert rig.get(1, 26, 2) == 0xFFFF, "there is no such vector"
    rig.put(1, 26, 2, 1)
    rig.put(1, 16, 2, 2)
    assert (rig.get(1, 26, 2), rig.get(1, 16, 2)) == (1, 2)
    rig.offer()
    rig.notify()
    assert rig.messages == [(0xFEE00000, 0x41)] and not any(rig.lines)
    rig.device.config_changed()
    assert rig.messages[1:] == [(0xFEE00000, 0x42)]


def test_an_enabled_queue_does_not_move(rig: Rig) -> None:
    rig.start()
    rig.put(1, 32, 8, 0x5000)
    rig.put(1, 24, 2, 4)
    assert rig.get(1, 32, 8) == QUEUE and rig.get(1, 24, 2) == 8


def test_device_configuration_and_generation(rig: Rig) -> None:
    assert rig.get(4, 0, 8) == int.from_bytes(b"configur", "little")
    rig.put(4, 1, 2, 0x5858)
    assert bytes(rig.device.config) == b"cXXfiguration"
    before = rig.get(1, 21, 1)
    rig.device.config_changed()
    assert rig.get(1, 21, 1) != before


def test_the_window_in_configuration_space(rig: Rig) -> None:
    at = rig.structures[5][2]

    def window(bar: int, offset: int, length: int) -> None:
        rig.config_write(at + 4, bar, 1)
        rig.config_write(at + 8, offset)
        rig.config_write(at + 12, length)

    window(0, 18, 2)
    assert rig.config_read(at + 16) & 0xFFFF == 2, "number of queues"
    window(0, 20, 1)
    rig.config_write(at + 16, ACKNOWLEDGE)
    assert rig.status() == ACKNOWLEDGE
    for bar, offset, length in ((5, 0, 4), (0, 1 << 31, 4), (0, 0, 3), (0, 2, 4), (0, 0, 1 << 31)):
        window(bar, offset, length)
        rig.config_write(at + 16, 0xFFFFFFFF)
        rig.config_read(at + 16)
    assert rig.status() == ACKNOWLEDGE


def test_without_msix() -> None:
    rig = Rig(msix=False)
    rig.start()
    rig.put(1, 26, 2, 0)
    assert rig.get(1, 26, 2) == 0xFFFF
    rig.offer()
    rig.notify()
    assert any(rig.lines)


def test_any_accesses(rig: Rig) -> None:
    """No sequence of accesses raises, wherever it goes."""
    rng = random.Random(7)
    for round_ in range(40):
        if round_ % 2:
            rig.start()
        for _ in range(300):
            size = rng.choice([1, 2, 4, 8])
            offset = rng.choice([rng.randrange(0x4000), rng.randrange(64),
                                 0x3000 + rng.randrange(9)])
            value = rng.choice([0, 1, 8, 0xF, 0xFFFF, QUEUE, rng.getrandbits(64)])
            base = rig.structures[1][0]
            if rng.random() < 0.6:
                rig.bus.write_mmio(base + offset, size, value & ((1 << 8 * size) - 1))
            else:
                assert 0 <= rig.bus.read_mmio(base + offset, size) < 1 << 8 * size
            if rng.random() < 0.1:
                rig.config_write(rig.structures[5][2] + 4 * rng.randrange(5), rng.getrandbits(32))
            if rng.random() < 0.05:
                at = QUEUE + rng.choice([0, 0x1000, 0x2000]) + rng.randrange(64)
                rig.ram.view[at] = rng.getrandbits(8)
