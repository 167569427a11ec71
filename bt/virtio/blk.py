# SPDX-License-Identifier: GPL-2.0-or-later
"""Block device (virtio 1.2, 5.2): one queue of requests, each done before the next is looked at.

A request is a header that the driver sends (type u32, reserved u32, sector u64), data, and a status
byte, the last one that the device may write.
"""

from __future__ import annotations

from struct import Struct

from bt.devices.disk import SECTOR, Disk
from bt.virtio.device import VirtioDevice
from bt.virtio.queue import Chain

F_SIZE_MAX = 1 << 1
F_SEG_MAX = 1 << 2
F_RO = 1 << 5
F_BLK_SIZE = 1 << 6
F_FLUSH = 1 << 9

T_IN, T_OUT, T_FLUSH, T_GET_ID = 0, 1, 4, 8
S_OK, S_IOERR, S_UNSUPP = 0, 1, 2
_STATUS = [bytes((status,)) for status in range(3)]

_HEADER = Struct("<IIQ")
# capacity, size_max, seg_max, cylinders, heads, sectors, blk_size (5.2.4)
_CONFIG = Struct("<QIIHBBI")
_QUEUE_SIZE = 256
_SEG_MAX = _QUEUE_SIZE - 2  # header and status take a descriptor each
_SIZE_MAX = 65536
#: The most that a driver can ask for at once by these limits; more is an error, for nothing else
#: runs while a request is being done.
MAX_BYTES = _SEG_MAX * _SIZE_MAX


class VirtioBlk(VirtioDevice):
    """``disk`` as a virtio block device; ``serial`` is at most 20 bytes."""

    name = "virtio-blk"
    device_id = 2
    pci_class = 0x010000  # mass storage
    queue_sizes = (_QUEUE_SIZE,)

    def __init__(self, disk: Disk, serial: bytes = b"") -> None:
        super().__init__()
        self._disk = disk
        self._serial = serial[:20].ljust(20, b"\0")
        self.features = F_SIZE_MAX | F_SEG_MAX | F_BLK_SIZE | F_FLUSH
        if disk.read_only:
            self.features |= F_RO
        self._config = _CONFIG.pack(disk.sectors, _SIZE_MAX, _SEG_MAX, 0, 0, 0, SECTOR)

    def config_read(self, offset: int, length: int) -> bytes:
        return self._config[offset:offset + length].ljust(length, b"\0")

    def notify(self, index: int) -> None:
        queue = self.queues[0]
        while (chain := queue.pop()) is not None:
            if chain.readable_bytes < _HEADER.size or not chain.writable_bytes:
                self.broken("a request without a whole header or without a status byte")
                return
            status, data = self._request(chain)
            chain.write(_STATUS[status], chain.writable_bytes - 1)
            # Only what is written without a gap from the first byte on counts (2.7.8.2).
            whole = data == chain.writable_bytes - 1
            queue.push(chain, data + 1 if whole else data)
        self.interrupt(0)

    def _request(self, chain: Chain) -> tuple[int, int]:
        """Do one request: its status, and the number of data bytes written from the first on."""
        kind, _, sector = _HEADER.unpack(chain.read(0, _HEADER.size))
        try:
            if kind == T_IN:
                length = chain.writable_bytes - 1
                if length % SECTOR or length > MAX_BYTES:
                    return S_IOERR, 0
                self._disk.readv(chain.writable_range(0, length), sector * SECTOR)
                return S_OK, length
            elif kind == T_OUT:
                length = chain.readable_bytes - _HEADER.size
                if length % SECTOR or length > MAX_BYTES:
                    return S_IOERR, 0
                self._disk.writev(chain.readable_range(_HEADER.size, length), sector * SECTOR)
                if not self.driver_features & F_FLUSH:
                    self._disk.flush()  # a driver that cannot flush relies on each write (5.2.6.2)
            elif kind == T_FLUSH:
                self._disk.flush()
            elif kind == T_GET_ID:
                if chain.writable_bytes - 1 < len(self._serial):
                    return S_IOERR, 0
                return S_OK, chain.write(self._serial)
            else:
                return S_UNSUPP, 0
        except OSError:
            return S_IOERR, 0
        return S_OK, 0
