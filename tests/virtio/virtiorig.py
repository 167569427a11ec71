# SPDX-License-Identifier: GPL-2.0-or-later
"""A driver in Python: lays out queues in RAM as a guest would, and a transport that notes calls."""

from __future__ import annotations

import struct

from bt.machine.dma import Dma
from bt.machine.ram import Ram
from bt.virtio.device import VirtioDevice

NEXT, WRITE, INDIRECT = 1, 2, 4
RAM_BYTES = 1 << 20


class NoteTransport:
    """Counts what a device asks of its bus."""

    def __init__(self) -> None:
        self.queue_interrupts: list[int] = []
        self.config_interrupts = 0
        self.whys: list[str] = []

    def queue_interrupt(self, index: int) -> None:
        self.queue_interrupts.append(index)

    def config_interrupt(self) -> None:
        self.config_interrupts += 1

    def needs_reset(self, why: str) -> None:
        self.whys.append(why)


class DriverQueue:
    """The driver's side of one queue, its areas from ``base`` on."""

    def __init__(self, rig: Rig, index: int, base: int, size: int) -> None:
        self.rig, self.index, self.size = rig, index, size
        self.descriptors = base
        self.driver = base + 16 * size
        self.device = (self.driver + 6 + 2 * size + 3) & ~3
        self.end = self.device + 6 + 8 * size
        self.available = self.seen = 0
        self.free = 0  # next descriptor to use
        queue = rig.device.queues[index]
        queue.size = size
        queue.descriptors, queue.driver, queue.device = self.descriptors, self.driver, self.device
        queue.enable()

    def describe(self, slot: int, gpa: int, length: int, flags: int, next_: int = 0) -> None:
        struct.pack_into("<QIHH", self.rig.ram.view, self.descriptors + 16 * slot, gpa, length,
                         flags, next_)

    def chain(self, *buffers: tuple[int, int, int]) -> int:
        """Put (gpa, length, flags) buffers into the table, linked; the head."""
        head = self.free
        for i, (gpa, length, flags) in enumerate(buffers):
            slot = (head + i) % self.size
            last = i == len(buffers) - 1
            self.describe(slot, gpa, length, flags | (0 if last else NEXT), (slot + 1) % self.size)
        self.free = (head + len(buffers)) % self.size
        return head

    def offer(self, head: int) -> None:
        view = self.rig.ram.view
        struct.pack_into("<H", view, self.driver + 4 + 2 * (self.available % self.size), head)
        self.available = (self.available + 1) & 0xFFFF
        struct.pack_into("<H", view, self.driver + 2, self.available)

    def submit(self, *buffers: tuple[int, int, int]) -> list[tuple[int, int]]:
        """Offer one chain, notify, and return what was used."""
        self.offer(self.chain(*buffers))
        self.rig.device.notify(self.index)
        return self.used()

    def used(self) -> list[tuple[int, int]]:
        """(head, bytes written) of the chains the device has given back since last asked."""
        view = self.rig.ram.view
        (index,) = struct.unpack_from("<H", view, self.device + 2)
        found = []
        while self.seen != index:
            found.append(struct.unpack_from("<II", view,
                                            self.device + 4 + 8 * (self.seen % self.size)))
            self.seen = (self.seen + 1) & 0xFFFF
        return found

    def used_event(self, index: int) -> None:
        struct.pack_into("<H", self.rig.ram.view, self.driver + 4 + 2 * self.size, index)

    def avail_event(self) -> int:
        return struct.unpack_from("<H", self.rig.ram.view, self.device + 4 + 8 * self.size)[0]


class Rig:
    """RAM, a device on a noting transport, and a driver's queues at 64 KB and up.

    ``written`` has every (gpa, length) that the vCPU was told of.
    """

    def __init__(self, device: VirtioDevice, *, features: int = 1 << 32, size: int = 8,
                 ram_bytes: int = RAM_BYTES) -> None:
        self.ram = Ram(ram_bytes)
        self.written: list[tuple[int, int]] = []
        self.dma = Dma(self.ram, lambda gpa, length: self.written.append((gpa, length)))
        self.transport = NoteTransport()
        self.device = device
        device.attach(self.transport, self.dma)
        device.agree(features)
        self.queues: list[DriverQueue] = []
        self.set_up(size)

    def set_up(self, size: int) -> None:
        """Make the queues, empty; anew after the device was reset."""
        self.ram.write(0x10000, bytes(0x8000 * len(self.device.queues)))
        self.queues = [DriverQueue(self, i, 0x10000 + 0x8000 * i, min(size, queue.max_size))
                       for i, queue in enumerate(self.device.queues)]
