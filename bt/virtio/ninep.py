# SPDX-License-Identifier: GPL-2.0-or-later
"""9P transport device: a folder of the host for the guest to mount, under a tag.

virtio 1.2 reserves the number 9 for it and leaves the rest to its users; the layout is Linux's
(include/uapi/linux/virtio_9p.h): one queue, a request and room for its answer in each chain, and a
configuration of the tag's length (u16) and the tag. The files are bt/ninep's.
"""

from __future__ import annotations

from bt.ninep.server import MAX_MESSAGE, Server
from bt.virtio.device import VirtioDevice

F_MOUNT_TAG = 1 << 0
MAX_TAG = 31  # Linux takes more; this fits in a command line


class VirtioNinep(VirtioDevice):
    """``server`` answers; the guest mounts ``tag`` (1 to MAX_TAG bytes)."""

    name = "virtio-9p"
    device_id = 9
    pci_class = 0x018000  # mass storage controller, other
    queue_sizes = (128,)
    features = F_MOUNT_TAG

    def __init__(self, server: Server, tag: bytes) -> None:
        super().__init__()
        assert 0 < len(tag) <= MAX_TAG
        self._server = server
        self._config = len(tag).to_bytes(2, "little") + tag

    def config_read(self, offset: int, length: int) -> bytes:
        return self._config[offset:offset + length].ljust(length, b"\0")

    def reset(self) -> None:
        self._server.close()

    def notify(self, index: int) -> None:
        queue = self.queues[0]
        while (chain := queue.pop()) is not None:
            length = chain.readable_bytes
            if length > MAX_MESSAGE:
                self.broken(f"a 9P message of {length} bytes")
                return
            answer = self._server.answer(chain.read(0, length), chain.writable_bytes)
            if not answer:
                self.broken("a 9P message without a header, or without room for an answer")
                return
            queue.push(chain, chain.write(answer))
        self.interrupt(0)
