# SPDX-License-Identifier: GPL-2.0-or-later
"""The block device: requests that are right, requests that are not."""

from __future__ import annotations

import struct
from pathlib import Path

import pytest
from virtiorig import WRITE, Rig

from bt.devices.disk import OVERLAY, RO, RW, Disk
from bt.virtio.blk import F_FLUSH, F_RO, MAX_BYTES, VirtioBlk
from bt.virtio.device import F_VERSION_1

SIZE = 64 * 512
HEADER, STATUS, BUFFER = 0x2000, 0x2100, 0x4000
IN, OUT, FLUSH, GET_ID = 0, 1, 4, 8


class Blk(Rig):
    def __init__(self, folder: Path, mode: str = RW, features: int = F_FLUSH) -> None:
        self.image = folder / "disk.img"
        self.image.write_bytes(bytes(i // 512 & 0xFF for i in range(SIZE)))
        self.disk = Disk(self.image, mode)
        self.flushes = 0
        real = self.disk.flush

        def flush() -> None:
            self.flushes += 1
            real()

        self.disk.flush = flush  # type: ignore[method-assign]
        super().__init__(VirtioBlk(self.disk, b"ring1-0"), features=F_VERSION_1 | features)

    def request(self, kind: int, sector: int, *buffers: tuple[int, int, int]) -> int:
        """The status byte; checks that the chain came back."""
        self.ram.write(HEADER, struct.pack("<IIQ", kind, 0, sector))
        self.ram.write(STATUS, b"\xee")
        used = self.queues[0].submit((HEADER, 16, 0), *buffers, (STATUS, 1, WRITE))
        assert len(used) == 1, self.transport.whys
        self.written_bytes = used[0][1]
        return self.ram.read(STATUS, 1)[0]


@pytest.fixture
def blk(tmp_path: Path) -> Blk:
    return Blk(tmp_path)


def test_read(blk: Blk) -> None:
    assert blk.request(IN, 3, (BUFFER, 512, WRITE), (BUFFER + 0x1000, 1024, WRITE)) == 0
    image = blk.image.read_bytes()
    assert blk.ram.read(BUFFER, 512) == image[1536:2048]
    assert blk.ram.read(BUFFER + 0x1000, 1024) == image[2048:3072]
    assert blk.written_bytes == 1537


def test_write_and_flush(blk: Blk) -> None:
    blk.ram.write(BUFFER, b"w" * 1024)
    assert blk.request(OUT, 60, (BUFFER, 1000, 0), (BUFFER + 1000, 24, 0)) == 0
    assert blk.image.read_bytes()[60 * 512:62 * 512] == b"w" * 1024
    assert blk.flushes == 0 and blk.written_bytes == 1
    assert blk.request(FLUSH, 0) == 0
    assert blk.flushes == 1


def test_a_driver_without_flush_needs_none(tmp_path: Path) -> None:
    blk = Blk(tmp_path, features=0)
    assert blk.request(OUT, 0, (BUFFER, 512, 0)) == 0
    assert blk.flushes == 1


@pytest.mark.parametrize(("kind", "sector", "length"), [
    (IN, 64, 512), (IN, 63, 1024), (IN, (1 << 64) - 1, 512), (IN, 1 << 55, 512), (IN, 0, 511),
    (OUT, 64, 512), (OUT, 63, 1024), (OUT, (1 << 64) - 1, 512), (OUT, 0, 513)])
def test_outside_the_disk(blk: Blk, kind: int, sector: int, length: int) -> None:
    before, ram = blk.image.read_bytes(), blk.ram.read(BUFFER, 2048)
    flags = WRITE if kind == IN else 0
    assert blk.request(kind, sector, (BUFFER, length, flags)) == 1
    assert blk.image.read_bytes() == before and blk.ram.read(BUFFER, 2048) == ram


def test_too_much_at_once(tmp_path: Path) -> None:
    image = tmp_path / "big"
    image.touch()
    image.open("r+b").truncate(64 << 20)
    rig = Rig(VirtioBlk(Disk(image)), features=F_VERSION_1 | F_FLUSH, ram_bytes=64 << 20)
    rig.ram.write(HEADER, struct.pack("<IIQ", IN, 0, 0))
    length = MAX_BYTES + 512
    rig.queues[0].submit((HEADER, 16, 0), (0x100000, length, WRITE), (STATUS, 1, WRITE))
    assert rig.ram.read(STATUS, 1) == b"\1"


def test_read_only(tmp_path: Path) -> None:
    blk = Blk(tmp_path, RO)
    assert blk.device.features & F_RO
    assert blk.request(OUT, 0, (BUFFER, 512, 0)) == 1
    assert blk.request(IN, 0, (BUFFER, 512, WRITE)) == 0


def test_overlay(tmp_path: Path) -> None:
    blk = Blk(tmp_path, OVERLAY)
    before = blk.image.read_bytes()
    blk.ram.write(BUFFER, b"o" * 512)
    assert blk.request(OUT, 5, (BUFFER, 512, 0)) == 0
    assert blk.request(IN, 5, (BUFFER + 0x1000, 512, WRITE)) == 0
    assert blk.ram.read(BUFFER + 0x1000, 512) == b"o" * 512 and blk.image.read_bytes() == before


def test_identity(blk: Blk) -> None:
    assert blk.request(GET_ID, 0, (BUFFER, 20, WRITE)) == 0
    assert blk.ram.read(BUFFER, 20) == b"ring1-0".ljust(20, b"\0")
    assert blk.request(GET_ID, 0, (BUFFER, 19, WRITE)) == 1


def test_what_it_does_not_know(blk: Blk) -> None:
    assert blk.request(11, 0, (BUFFER, 512, 0)) == 2


def test_a_lost_image_is_an_error(blk: Blk) -> None:
    blk.image.write_bytes(b"")
    assert blk.request(IN, 0, (BUFFER, 512, WRITE)) == 1


@pytest.mark.parametrize("buffers", [
    [(HEADER, 15, 0), (STATUS, 1, WRITE)], [(HEADER, 16, 0)], [(STATUS, 1, WRITE)],
    [(HEADER, 8, 0), (BUFFER, 512, WRITE), (STATUS, 1, WRITE)]])
def test_half_a_request_stops_the_device(blk: Blk, buffers: list[tuple[int, int, int]]) -> None:
    assert blk.queues[0].submit(*buffers) == []
    assert "header" in blk.transport.whys[0]
    assert blk.queues[0].submit((HEADER, 16, 0), (STATUS, 1, WRITE)) == []


def test_many_requests_one_interrupt(blk: Blk) -> None:
    """And a header in pieces, a status behind data in one buffer: framing is free (2.7.4)."""
    blk.ram.write(HEADER, struct.pack("<IIQ", IN, 0, 1))
    queue = blk.queues[0]
    for _ in range(2):
        queue.offer(queue.chain((HEADER, 4, 0), (HEADER + 4, 12, 0), (BUFFER, 513, WRITE)))
    blk.device.notify(0)
    assert queue.used() == [(0, 513), (3, 513)]
    assert blk.transport.queue_interrupts == [0]
    assert blk.ram.read(BUFFER, 513) == b"\1" * 512 + b"\0"


def test_configuration(blk: Blk) -> None:
    assert struct.unpack("<Q", blk.device.config_read(0, 8)) == (64,)
    assert struct.unpack("<I", blk.device.config_read(20, 4)) == (512,)
    assert blk.device.config_read(4000, 4) == bytes(4)
