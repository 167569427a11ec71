# SPDX-License-Identifier: GPL-2.0-or-later
"""The ATA channel, driven as a driver does (ATA/ATAPI-6), and by random accesses."""

from __future__ import annotations

import random
import struct
from pathlib import Path

import pytest

from bt.devices.ata import AtaChannel
from bt.devices.disk import RO, RW, Disk
from bt.machine.bus import Bus

DATA, ERROR, COUNT, LOW, MID, HIGH, DEVICE, COMMAND, CONTROL = (*range(0x1F0, 0x1F8), 0x3F6)
ERR, DRQ, DRDY = 1, 8, 0x40
SECTORS = 300


class Rig:
    def __init__(self, folder: Path, mode: str = RW, disks: int = 1) -> None:
        self.images = [folder / f"{n}.img" for n in range(disks)]
        self.bus = Bus()
        self.irq = False
        self.irqs = 0
        self.channel = AtaChannel(self.bus, self._drive)
        self.disks = []
        for n, image in enumerate(self.images):
            image.write_bytes(bytes((i // 512 + i * 3 + n) & 0xFF for i in range(SECTORS * 512)))
            self.disks.append(Disk(image, mode))
            self.channel.add(self.disks[-1], f"serial{n}")

    def _drive(self, level: bool) -> None:
        self.irqs += level and not self.irq
        self.irq = level

    def out(self, port: int, value: int) -> None:
        self.bus.write(port, 1, value)

    def get(self, port: int) -> int:
        return self.bus.read(port, 1)

    def command(self, command: int, lba: int = 0, count: int = 1, device: int = 0x40,
                features: int = 0, long: bool = False) -> int:
        """Give a command; the status after it (without acknowledging)."""
        if long:
            for port, value in ((COUNT, count >> 8), (LOW, lba >> 24), (MID, lba >> 32),
                                (HIGH, lba >> 40)):
                self.out(port, value & 0xFF)
        else:
            device |= lba >> 24 & 15
        for port, value in ((ERROR, features), (COUNT, count), (LOW, lba), (MID, lba >> 8),
                            (HIGH, lba >> 16), (DEVICE, device), (COMMAND, command)):
            self.out(port, value & 0xFF)
        return self.get(CONTROL)

    def take(self, length: int) -> bytes:
        return b"".join(struct.pack("<H", self.bus.read(DATA, 2)) for _ in range(length // 2))

    def give(self, data: bytes) -> None:
        for (word,) in struct.iter_unpack("<H", data):
            self.bus.write(DATA, 2, word)


@pytest.fixture
def rig(tmp_path: Path) -> Rig:
    return Rig(tmp_path)


def test_identify(rig: Rig) -> None:
    assert rig.command(0xEC) == DRDY | 0x10 | DRQ and rig.irq
    words = struct.unpack("<256H", rig.take(512))
    assert rig.get(CONTROL) & DRQ == 0
    assert words[60] | words[61] << 16 == SECTORS == words[100]
    assert words[49] & 1 << 9 and not words[49] & 1 << 8, "LBA, and no DMA"
    assert words[83] & 1 << 10 and words[47] == 0x8010 and words[59] == 0x110
    name = b"".join(struct.pack(">H", word) for word in words[27:47])
    assert name.strip() == b"Ring1 disk"
    assert b"".join(struct.pack(">H", word) for word in words[10:20]).strip() == b"serial0"


@pytest.mark.parametrize(("command", "long", "block"), [
    (0x20, False, 1), (0x24, True, 1), (0xC4, False, 16), (0x29, True, 16)])
def test_reads(rig: Rig, command: int, long: bool, block: int) -> None:
    """An interrupt for each block, and the status says when there is more."""
    image = rig.images[0].read_bytes()
    before = rig.irqs
    rig.command(command, lba=5, count=40, long=long)
    data = b""
    left = 40
    while left:
        sectors = min(block, left)
        assert rig.irq
        assert rig.get(COMMAND) & DRQ
        assert not rig.irq, "reading the status acknowledges"
        data += rig.take(512 * sectors)
        left -= sectors
    assert rig.get(COMMAND) == DRDY | 0x10
    assert data == image[5 * 512:45 * 512]
    assert rig.irqs - before == -(-40 // block)


@pytest.mark.parametrize(("command", "long", "block"), [
    (0x30, False, 1), (0x34, True, 1), (0xC5, False, 16), (0x39, True, 16)])
def test_writes(rig: Rig, command: int, long: bool, block: int) -> None:
    data = random.Random(1).randbytes(20 * 512)
    assert rig.command(command, lba=7, count=20, long=long) & DRQ
    assert not rig.irq, "none before the first block"
    for at in range(0, 20, block):
        assert rig.get(COMMAND) & DRQ
        rig.give(data[at * 512:(at + block) * 512])
        assert rig.irq
    assert rig.get(COMMAND) == DRDY | 0x10
    assert rig.images[0].read_bytes()[7 * 512:27 * 512] == data
    assert rig.command(0xE7) == DRDY | 0x10, "FLUSH CACHE"


def test_cylinder_head_sector(rig: Rig) -> None:
    image = rig.images[0].read_bytes()
    rig.command(0x91, count=20, device=3)       # 20 sectors, 4 heads
    rig.command(0x20, lba=1 | 2 << 8, device=1)         # cylinder 2, head 1, sector 1
    at = (2 * 4 + 1) * 20 * 512
    assert rig.take(512) == image[at:at + 512]
    assert rig.command(0x20, lba=0, device=1) & ERR, "sectors count from 1"


@pytest.mark.parametrize(("command", "lba", "count", "error"), [
    (0x20, SECTORS, 1, 0x10), (0x20, SECTORS - 1, 2, 0x10), (0x30, SECTORS - 1, 2, 0x10),
    (0x20, 100, 0, 0x10),                       # a count of 0 is 256
    (0xA1, 0, 0, 4), (0xC8, 0, 1, 4), (0xB0, 0, 0, 4), (0x00, 0, 0, 4), (0xC6, 0, 3, 4)])
def test_errors(rig: Rig, command: int, lba: int, count: int, error: int) -> None:
    image = rig.images[0].read_bytes()
    assert rig.command(command, lba=lba, count=count) & (ERR | DRQ) == ERR
    assert rig.irq and rig.get(ERROR) == error
    rig.give(b"x" * 1024)
    assert rig.images[0].read_bytes() == image


def test_long_addresses_are_long(rig: Rig) -> None:
    assert rig.command(0x24, lba=1 << 40, long=True) & ERR
    assert rig.command(0x24, lba=0, count=0, long=True) & ERR, "0 is 65536 sectors"


def test_read_only(tmp_path: Path) -> None:
    rig = Rig(tmp_path, RO)
    assert rig.command(0x30) & ERR and rig.get(ERROR) == 4


def test_a_lost_image_is_an_error(rig: Rig) -> None:
    rig.images[0].write_bytes(b"")
    assert rig.command(0x20) & ERR and rig.get(ERROR) == 0x40


def test_two_disks_and_one(tmp_path: Path) -> None:
    rig = Rig(tmp_path, disks=2)
    rig.command(0x20, device=0x50)
    assert rig.take(512) == rig.images[1].read_bytes()[:512]
    (tmp_path / "alone").mkdir()
    alone = Rig(tmp_path / "alone")
    assert alone.command(0xEC, device=0x50) == 0, "nobody there"
    assert not alone.irq
    alone.out(DEVICE, 0)
    assert alone.get(COMMAND) & DRDY


def test_interrupts_can_be_turned_off(rig: Rig) -> None:
    rig.out(CONTROL, 2)
    rig.command(0xEC)
    assert not rig.irq
    rig.out(CONTROL, 0)
    assert rig.irq, "it was pending"


def test_software_reset(rig: Rig) -> None:
    rig.command(0x20, count=4)
    rig.out(CONTROL, 4)
    rig.out(CONTROL, 0)
    assert [rig.get(port) for port in (ERROR, COUNT, LOW, MID, HIGH)] == [1, 1, 1, 0, 0]
    assert rig.get(COMMAND) == DRDY | 0x10 and not rig.irq
    assert rig.bus.read(DATA, 2) == 0


def test_two_values_behind_each_register(rig: Rig) -> None:
    rig.out(LOW, 0x12)
    rig.out(LOW, 0x34)
    assert rig.get(LOW) == 0x34
    rig.out(CONTROL, 0x80)
    assert rig.get(LOW) == 0x12


def test_any_accesses(tmp_path: Path) -> None:
    """No sequence of accesses raises, or writes where the disk is not."""
    rig = Rig(tmp_path, disks=2)
    after = tmp_path / "after"
    after.write_bytes(b"untouched")
    rng = random.Random(4)
    commands = [0x20, 0x24, 0xC4, 0x29, 0x30, 0x34, 0xC5, 0x39, 0xEC, 0xC6, 0xEF, 0x91, 0x90, 0xE7]
    for _ in range(60_000):
        port = rng.choice([DATA, DATA, DATA, *range(ERROR, COMMAND + 1), CONTROL])
        size = rng.choice([1, 2, 4])
        if rng.random() < 0.5:
            value = rng.getrandbits(8 * size)
            if port == COMMAND and rng.random() < 0.8:
                value = rng.choice(commands)
            elif port in (MID, HIGH) and rng.random() < 0.8:
                value = 0
            rig.bus.write(port, size, value)
        else:
            assert 0 <= rig.bus.read(port, size) < 1 << 8 * size
    assert [image.stat().st_size for image in rig.images] == [SECTORS * 512] * 2
