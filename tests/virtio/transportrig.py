# SPDX-License-Identifier: GPL-2.0-or-later
"""A driver that knows its device's registers by what they do: what the transports' tests share."""

from __future__ import annotations

import struct

from bt.machine.ram import Ram
from bt.virtio.device import F_VERSION_1, VirtioDevice
from bt.virtio.registers import ACKNOWLEDGE, DRIVER, DRIVER_OK, FEATURES_OK

QUEUE = 0x10000
F_MINE = 1 << 3


class Echo(VirtioDevice):
    name = "echo"
    device_id = 42
    features = F_MINE
    queue_sizes = (64, 16)

    def __init__(self) -> None:
        super().__init__()
        self.notified: list[int] = []
        self.resets = 0
        self.config = bytearray(b"configuration")

    def config_read(self, offset: int, length: int) -> bytes:
        return bytes(self.config[offset:offset + length].ljust(length, b"\0"))

    def config_write(self, offset: int, data: bytes) -> None:
        self.config[offset:offset + len(data)] = data

    def notify(self, index: int) -> None:
        self.notified.append(index)
        while (chain := self.queues[index].pop()) is not None:
            self.queues[index].push(chain, chain.write(chain.read(0, 4096)))
        self.interrupt(index)

    def reset(self) -> None:
        self.resets += 1


class DriverRig:
    """The driver of an Echo. A transport's own rig says where the registers are."""

    def __init__(self) -> None:
        self.ram = Ram(1 << 20)
        self.reports: list[str] = []
        self.device = Echo()

    # For transports -----------------------------------------------------------------------------

    def status(self, value: int | None = None) -> int:
        """The device status, after writing ``value`` to it."""
        raise NotImplementedError

    def features(self) -> int:
        """What the device offers."""
        raise NotImplementedError

    def agree(self, features: int) -> None:
        """Write the driver's features."""
        raise NotImplementedError

    def set_up(self, index: int = 0, size: int = 8, base: int = QUEUE) -> None:
        """Give the device a queue, with its areas 4 KB apart, and leave it selected."""
        raise NotImplementedError

    def enabled(self) -> int:
        """Whether the selected queue is."""
        raise NotImplementedError

    def notify(self, index: int = 0) -> None:
        """Ring the doorbell."""
        raise NotImplementedError

    def isr(self) -> int:
        """The interrupt status; reading may acknowledge it."""
        raise NotImplementedError

    def asserted(self) -> bool:
        """Whether an interrupt line is."""
        raise NotImplementedError

    # What follows from these ------------------------------------------------------------------

    def start(self, features: int = F_VERSION_1 | F_MINE) -> None:
        """Initialise as 3.1.1 says."""
        self.status(0)
        self.status(ACKNOWLEDGE)
        self.status(ACKNOWLEDGE | DRIVER)
        self.agree(features)
        assert self.status(ACKNOWLEDGE | DRIVER | FEATURES_OK) & FEATURES_OK
        self.set_up()
        self.status(ACKNOWLEDGE | DRIVER | FEATURES_OK | DRIVER_OK)

    def offer(self, number: int = 1) -> None:
        """Put a chain into the first queue, and say that there are ``number``."""
        struct.pack_into("<QIHH", self.ram.view, QUEUE, 0x4000, 16, 2, 0)
        struct.pack_into("<HHH", self.ram.view, QUEUE + 0x1000, 0, number, 0)

    def used(self) -> int:
        return struct.unpack_from("<H", self.ram.view, QUEUE + 0x2002)[0]
