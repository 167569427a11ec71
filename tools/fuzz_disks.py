#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0-or-later
"""A guest that attacks its disks: virtio block behind PCI or MMIO registers, and the ATA channel.

    python tools/fuzz_disks.py [--seconds 300] [--seed 1] [--device NAME]

Rings, descriptors, requests, register accesses and resets are half right and half random, so that
some get far. No device may raise, write outside guest RAM (the pages around it are watched), write
to RAM without telling the vCPU first, or touch the image where it may not, or another file. A
failure names the seed, which repeats it. (fuzz_virtio.py has the devices of every other kind, below
their transport.)
"""

from __future__ import annotations

import argparse
import mmap
import random
import struct
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from bt.devices.ata import AtaChannel
from bt.devices.disk import OVERLAY, RO, RW, SECTOR, Disk
from bt.devices.pci import COMMAND_IO, COMMAND_MASTER, COMMAND_MEMORY, PciHost
from bt.machine.bus import Bus
from bt.machine.dma import Dma
from bt.machine.ram import PAGE
from bt.virtio.device import VirtioDevice
from bt.virtio.mmio import SIZE, VirtioMmio
from bt.virtio.pci import COMMON, DEVICE, ISR, NOTIFY, VirtioPci

RAM_BYTES = 1 << 20
SECTORS = 200
_FENCE = 4 * PAGE
_ACK, _DRIVER, _DRIVER_OK, _FEATURES_OK = 1, 2, 4, 8
_NEXT, _WRITE, _INDIRECT = 1, 2, 4


class FencedRam:
    """RAM with pages on both sides that nobody may write to."""

    def __init__(self) -> None:
        self.size = self.low_end = RAM_BYTES
        self._map = mmap.mmap(-1, RAM_BYTES + 2 * _FENCE)
        self._whole = memoryview(self._map)
        for at in (0, _FENCE + RAM_BYTES):
            self._whole[at:at + _FENCE] = b"\xa5" * _FENCE
        self.view = self._whole[_FENCE:_FENCE + RAM_BYTES]

    def contains(self, gpa: int, length: int) -> bool:
        return 0 <= gpa and 0 <= length and gpa + length <= RAM_BYTES

    def intact(self) -> bool:
        """Whether the fences are as they were."""
        return all(bytes(self._whole[at:at + _FENCE]) == b"\xa5" * _FENCE
                   for at in (0, _FENCE + RAM_BYTES))


class Failure(Exception):
    """A device did what it must not."""


class World:
    """One device and everything that it can reach."""

    def __init__(self, folder: Path, rng: random.Random) -> None:
        self.rng = rng
        self.folder = folder
        self.ram = FencedRam()
        self.bus = Bus()
        self.image = folder / "disk.img"
        # Not a multiple of a sector: what is behind the last one is not the disk's.
        self.image.write_bytes(rng.randbytes(SECTORS * SECTOR) + b"behind the disk")
        self.beside = folder / "beside"
        self.beside.write_bytes(b"beside the disk")
        self.may_write = True

    def check(self) -> None:
        """Raise Failure if something was touched that must not be."""
        if not self.ram.intact():
            raise Failure("a write outside guest RAM")
        data = self.image.read_bytes()
        if len(data) != SECTORS * SECTOR + 15 or not data.endswith(b"behind the disk"):
            raise Failure("a write outside the disk")
        if not self.may_write and data != self.original:
            raise Failure("a write to an image that is read-only")
        if self.beside.read_bytes() != b"beside the disk":
            raise Failure("a write to another file")

    def disk(self, mode: str) -> Disk:
        """The image, opened."""
        self.may_write = mode == RW
        self.original = self.image.read_bytes()
        return Disk(self.image, mode)


# The disks --------------------------------------------------------------------------------------


def _block(mode: str) -> Callable[[World], VirtioDevice]:
    def make(world: World) -> VirtioDevice:
        from bt.virtio.blk import VirtioBlk
        return VirtioBlk(world.disk(mode), b"fuzz")
    return make


DEVICES: dict[str, Callable[[World], VirtioDevice]] = {
    "blk": _block(RW), "blk-ro": _block(RO), "blk-overlay": _block(OVERLAY),
}
DEVICES["blk-mmio"] = DEVICES["blk"]
NAMES = (*DEVICES, "ata")


# The lying driver ---------------------------------------------------------------------------------


class Driver:
    """Random half-right work for one virtio device."""

    def __init__(self, world: World, device: VirtioDevice) -> None:
        self.world, self.rng, self.device = world, world.rng, device
        self.told = bytearray(RAM_BYTES // 64)  # a byte for 64 bytes of RAM: the vCPU knows
        self.areas: list[tuple[int, int, int, int]] = []
        self.plug(Dma(world.ram, self._begin))  # type: ignore[arg-type]

    def plug(self, dma: Dma) -> None:
        """Put the device on its bus."""
        self.function = VirtioPci(self.device, dma)
        host = PciHost(self.world.bus, [lambda level: None] * 4, (10, 11, 10, 11))
        host.on_message = lambda address, data: None
        host.add(self.function)
        self.function.config_write(4, 2, COMMAND_IO | COMMAND_MEMORY | COMMAND_MASTER)

    def _begin(self, gpa: int, length: int) -> None:
        if not 0 <= gpa < gpa + length <= RAM_BYTES:
            raise Failure(f"the vCPU was told of {gpa:#x}+{length:#x}, which is not RAM")
        first, last = gpa >> 6, gpa + length - 1 >> 6
        self.told[first:last + 1] = b"\1" * (last + 1 - first)

    def put(self, page: int, offset: int, size: int, value: int) -> None:
        """A store to the transport's BAR."""
        self.function.bar_write(0, page + offset, size, value & (1 << 8 * size) - 1)

    def start(self) -> None:
        """Initialise, mostly as one should."""
        rng = self.rng
        self.put(COMMON, 20, 1, 0)
        self.put(COMMON, 20, 1, _ACK | _DRIVER)
        features = self.device.features | 7 << 28 | 1 << 32
        for bit in range(40):
            if rng.random() < 0.15 and bit != 32:
                features &= ~(1 << bit)
        for half in range(2):
            self.put(COMMON, 8, 4, half)
            self.put(COMMON, 12, 4, (features & ~(1 << 30)) >> 32 * half)
        self.put(COMMON, 20, 1, _ACK | _DRIVER | _FEATURES_OK)
        self.areas = []
        for index, queue in enumerate(self.device.queues):
            size = rng.choice([1, 2, 8, 8, 16, queue.max_size])
            base = 0x10000 * (index + 1)
            addresses = [base, base + 0x4000, base + 0x8000]
            if rng.random() < 0.03:
                addresses[rng.randrange(3)] = rng.choice([0, 1, RAM_BYTES - 8, 1 << 40, base + 8])
            self.put(COMMON, 22, 2, index)
            self.put(COMMON, 24, 2, size)
            for at, address in zip((32, 40, 48), addresses, strict=True):
                self.put(COMMON, at, 8, address)
            self.put(COMMON, 28, 2, 1)
            # The ring starts at zero, as the device's indexes do.
            self.world.ram.view[base:base + 0x10000] = bytes(0x10000)
            self.areas.append((base, base + 0x4000, base + 0x8000, size))
        self.put(COMMON, 20, 1, _ACK | _DRIVER | _FEATURES_OK | _DRIVER_OK)

    def address(self) -> int:
        rng = self.rng
        if rng.random() < 0.97:
            return 0x80000 + rng.randrange(0x7F000)
        return rng.choice([0, RAM_BYTES - 1, RAM_BYTES, 1 << 32, (1 << 64) - 1, 0x10000, 0x18004])

    def length(self) -> int:
        rng = self.rng
        if rng.random() < 0.97:
            return rng.choice([1, 4, 7, 16, 20, 64, 512, 513, 1024, 1526, 4096, 8192])
        return rng.choice([0, 1 << 20, 1 << 31, (1 << 32) - 1])

    def request(self, gpa: int) -> None:
        """Put something at ``gpa`` that the device may take for the start of a request."""
        rng = self.rng
        if rng.random() < 0.9:
            data = struct.pack("<IIQ", rng.choice([0, 0, 1, 1, 4, 8, 11, rng.getrandbits(32)]), 0,
                               rng.choice([0, 3, SECTORS - 1, SECTORS, rng.getrandbits(64)]))
        else:
            data = rng.randbytes(64)
        self.world.ram.view[gpa:gpa + len(data)] = data

    def chain(self, base: int, size: int) -> int:
        """Write a chain of descriptors; its head."""
        rng, view = self.rng, self.world.ram.view
        count = min(rng.choice([1, 2, 2, 3, 3, 3, 4, 6]), size)
        head = rng.randrange(size)
        table, slots = base, [(head + i) % size for i in range(count)]
        if rng.random() < 0.25:
            table, slots = 0xFF800 + rng.randrange(8) * 64, list(range(count))
            struct.pack_into("<QIHH", view, base + 16 * head, table, 16 * count, _INDIRECT, 0)
            table = min(table, RAM_BYTES - 16 * count)
        writable = rng.randrange(count + 1)
        for i, slot in enumerate(slots):
            gpa = self.address()
            if i == 0 and gpa < RAM_BYTES - 128:
                self.request(gpa)
            flags = _WRITE if i >= writable else 0
            if i < count - 1:
                flags |= _NEXT
            length = self.length()
            if i == count - 1 and flags & _WRITE and rng.random() < 0.5:
                length = 1          # a status byte
            if i == 0 and not flags & _WRITE and rng.random() < 0.6:
                length = 16         # a block request's header
            if rng.random() < 0.01:
                flags = rng.getrandbits(16)
            following = slots[(i + 1) % count] if rng.random() < 0.99 else rng.getrandbits(16)
            struct.pack_into("<QIHH", view, table + 16 * slot, gpa, length, flags, following)
        return head

    def work(self) -> None:
        """Some chains for a queue, then the doorbell."""
        rng, view = self.rng, self.world.ram.view
        if not self.areas:
            return
        index = rng.randrange(len(self.areas))
        descriptors, driver, _, size = self.areas[index]
        available = struct.unpack_from("<H", view, driver + 2)[0]
        for _ in range(rng.randrange(1, 4)):
            head = self.chain(descriptors, size) if rng.random() < 0.99 else rng.getrandbits(16)
            struct.pack_into("<H", view, driver + 4 + 2 * (available % size), head)
            available = (available + 1) & 0xFFFF
        if rng.random() < 0.01:
            available = rng.getrandbits(16)
        struct.pack_into("<H", view, driver + 2, available)
        struct.pack_into("<H", view, driver + 4 + 2 * size, rng.getrandbits(16))
        self.put(NOTIFY, 4 * index, 2, index)

    def step(self) -> None:
        """One random act."""
        what = self.rng.random()
        if self.device.why_broken is not None and what < 0.3:
            self.start()
        elif what < 0.7:
            self.work()
        elif what < 0.9:
            self.poke(what)
        elif what < 0.92:
            self.start()
        else:
            self.work()

    def poke(self, what: float) -> None:
        """Read or write any register. what: 0.7 to 0.9, says how."""
        rng = self.rng
        if what < 0.78:
            page = rng.choice([COMMON, ISR, DEVICE, NOTIFY])
            self.put(page, rng.randrange(80), rng.choice([1, 2, 4, 8]), rng.getrandbits(64))
        elif what < 0.86:
            offset, size = rng.randrange(0x4000), rng.choice([1, 2, 4, 8])
            self.function.bar_read(rng.randrange(2), offset, size)
        else:
            self.function.config_write(4 * rng.randrange(16, 64), 4, rng.getrandbits(32))
            self.function.config_read(4 * rng.randrange(64), 4)

    def checked_step(self) -> None:
        """A step after which everything new in RAM must have been announced."""
        writes = self.world.ram.view
        self.told[:] = bytes(len(self.told))
        before_notify: list[bytes] = []
        put = self.put

        def watch(page: int, offset: int, size: int, value: int) -> None:
            if page == NOTIFY:
                before_notify[:] = [bytes(writes)]
            put(page, offset, size, value)

        self.put = watch  # type: ignore[method-assign]
        try:
            self.work()
        finally:
            del self.put
        if before_notify:
            after = bytes(writes)
            if after != before_notify[0]:
                for at in range(0, RAM_BYTES, 64):
                    if after[at:at + 64] != before_notify[0][at:at + 64] and not self.told[at >> 6]:
                        raise Failure(f"RAM at {at:#x} was written, and the vCPU was not told")


class MmioDriver(Driver):
    """The same for a device in memory."""

    _BASE = 0xFED0_0000
    #: Where a field of the PCI transport's common configuration is here.
    _REGISTERS = {8: 0x24, 12: 0x20, 20: 0x70, 22: 0x30, 24: 0x38, 28: 0x44}

    def plug(self, dma: Dma) -> None:
        device = VirtioMmio(self.device, dma, lambda level: None, base=self._BASE)
        self.world.bus.claim_mmio(device, self._BASE, SIZE)

    def put(self, page: int, offset: int, size: int, value: int) -> None:
        write = self.world.bus.write_mmio
        if page == NOTIFY:
            write(self._BASE + 0x50, 4, offset // 4)
        elif offset in self._REGISTERS:
            write(self._BASE + self._REGISTERS[offset], 4, value)
        else:       # an address, of 64 bits
            register = self._BASE + 0x80 + 2 * (offset - 32)
            write(register, 4, value & 0xFFFF_FFFF)
            write(register + 4, 4, value >> 32)

    def poke(self, what: float) -> None:
        rng, bus, size = self.rng, self.world.bus, self.rng.choice([1, 2, 4, 4, 4, 8])
        at = self._BASE + rng.choice([rng.randrange(SIZE), 4 * rng.randrange(SIZE // 4)])
        if what < 0.8:
            bus.write_mmio(at, size, rng.choice([0, 1, rng.getrandbits(8 * size)]))
        else:
            bus.read_mmio(at, size)


def fuzz_virtio(world: World, name: str, steps: int) -> None:
    """``steps`` acts on a fresh device."""
    kind = MmioDriver if name == "blk-mmio" else Driver
    driver = kind(world, DEVICES[name](world))
    driver.start()
    for step in range(steps):
        if step % 64 == 0:
            driver.checked_step()
        else:
            driver.step()


def fuzz_ata(world: World, steps: int) -> None:
    """Random register accesses, with commands and addresses that get somewhere."""
    rng, bus = world.rng, world.bus
    mode = rng.choice([RW, RO, OVERLAY])
    channel = AtaChannel(bus, lambda level: None)
    channel.add(world.disk(mode), "fuzz")
    commands = (0x20, 0x24, 0xC4, 0x29, 0x30, 0x34, 0xC5, 0x39, 0x40, 0xEC, 0xC6, 0xEF, 0x91, 0x90,
                0xE7, 0xEA)
    for _ in range(steps):
        what, size = rng.random(), rng.choice([1, 2, 4])
        if what < 0.4:
            for _ in range(rng.randrange(300)):
                if rng.random() < 0.5:
                    bus.read(0x1F0, size)
                else:
                    bus.write(0x1F0, size, rng.getrandbits(8 * size))
        elif what < 0.6:
            for port in range(0x1F1, 0x1F6):
                bus.write(port, 1, rng.choice([0, 0, 1, 2, 16, 0xFF]))
            bus.write(0x1F6, 1, rng.choice([0x40, 0x40, 0x40, 0, 0x50, 0xFF]))
            bus.write(0x1F7, 1, rng.choice(commands))
        elif what < 0.8:
            bus.read(rng.choice([*range(0x1F0, 0x1F8), 0x3F6]), size)
        else:
            bus.write(rng.choice([*range(0x1F0, 0x1F8), 0x3F6]), size, rng.getrandbits(8 * size))


def run(names: list[str], seconds: float, seed: int, steps: int = 2000) -> dict[str, int]:
    """Fuzz each disk for its share of ``seconds``; how many worlds each was given.

    Raises Failure or what a device raised, with a note that says how to repeat it.
    """
    worlds = dict.fromkeys(names, 0)
    for name in names:
        end = time.monotonic() + seconds / len(names)
        while not worlds[name] or time.monotonic() < end:
            number = seed + worlds[name]
            with tempfile.TemporaryDirectory() as folder:
                world = World(Path(folder), random.Random(number))
                try:
                    if name == "ata":
                        fuzz_ata(world, steps // 4)
                    else:
                        fuzz_virtio(world, name, steps)
                    world.check()
                except BaseException as error:
                    error.add_note(f"repeat: --device {name} --seed {number}")
                    raise
            worlds[name] += 1
    return worlds


def main() -> int:
    """Run from the command line; the exit status."""
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=300.0, help="in all (default: 300)")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--device", choices=NAMES, action="append", help="this one; again for more")
    options = parser.parse_args()
    worlds = run(options.device or list(NAMES), options.seconds, options.seed)
    for name, count in worlds.items():
        print(f"{name}: {count} devices, nothing wrong")
    return 0


if __name__ == "__main__":
    sys.exit(main())
