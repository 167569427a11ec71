# SPDX-License-Identifier: GPL-2.0-or-later
"""Network card (virtio 1.2, 5.1): one queue to receive, one to send, and a link (bt/net).

Frames go from the guest's memory into a system call and from there into the guest's memory. What
makes it fast is that they are large: the card takes up to 64 KB of TCP in one frame with its
checksum open, and gives such frames to a driver that said it takes them, spread over as many
buffers as it needs (MRG_RXBUF).

There is no control queue: the card is always promiscuous, and its address cannot be changed.
"""

from __future__ import annotations

from collections import deque

from bt.net import header, offload
from bt.net.link import Host, Link
from bt.virtio.device import VirtioDevice
from bt.virtio.queue import Chain

F_CSUM, F_GUEST_CSUM = 1 << 0, 1 << 1
F_MAC = 1 << 5
F_GUEST_TSO4, F_GUEST_TSO6, F_GUEST_ECN = 1 << 7, 1 << 8, 1 << 9
F_HOST_TSO4, F_HOST_TSO6, F_HOST_ECN = 1 << 11, 1 << 12, 1 << 13
F_MRG_RXBUF, F_STATUS = 1 << 15, 1 << 16
_GUEST_OFFLOADS = F_GUEST_CSUM | F_GUEST_TSO4 | F_GUEST_TSO6 | F_GUEST_ECN
_HOST_OFFLOADS = F_CSUM | F_HOST_TSO4 | F_HOST_TSO6 | F_HOST_ECN
_GSO_FEATURE = {header.GSO_TCPV4: F_GUEST_TSO4, header.GSO_TCPV6: F_GUEST_TSO6}

RECEIVE, TRANSMIT = 0, 1
_STATUS_LINK_UP = 1
#: readv(2) and writev(2) take so many views.
_IOV_MAX = 1024
#: Frames received before the guest runs again; more may be waiting.
_BATCH = 256


class VirtioNet(VirtioDevice):
    """A card with the 6-byte address ``mac`` on ``link``."""

    name = "virtio-net"
    device_id = 1
    pci_class = 0x020000  # Ethernet controller
    queue_sizes = (256, 256)
    features = F_MAC | F_STATUS | F_MRG_RXBUF | _GUEST_OFFLOADS

    def __init__(self, link: Link, mac: bytes) -> None:
        super().__init__()
        self._link = link
        self._mac = mac
        if link.offloads:
            self.features = VirtioNet.features | _HOST_OFFLOADS
        self._free: deque[Chain] = deque()  # taken from the receive queue, not filled yet
        self._free_bytes = 0
        self._pending: deque[bytearray] = deque()  # received, no buffers yet
        self._unsent: Chain | None = None  # no room for it outside, for now
        self._scratch = bytearray(header.MAX_FRAME + 1)
        self.received = self.sent = self.dropped = 0  # frames

    def plug_in(self, host: Host) -> None:
        """Connect the cable. Raises InputError."""
        self._link.attach(host, self)

    def close(self) -> None:
        """Pull the cable out, for good."""
        self._link.close()

    # The driver -----------------------------------------------------------------------------------

    def config_read(self, offset: int, length: int) -> bytes:
        status = _STATUS_LINK_UP if self._link.up else 0
        config = self._mac + status.to_bytes(2, "little") + b"\x01\0"  # one pair of queues
        return config[offset:offset + length].ljust(length, b"\0")

    def agree(self, driver_features: int) -> None:
        super().agree(driver_features)
        self._link.agree(*(bool(driver_features & feature)
                           for feature in (F_GUEST_CSUM, F_GUEST_TSO4, F_GUEST_TSO6)))

    def reset(self) -> None:
        self._free.clear()
        self._free_bytes = 0
        self._pending.clear()
        self._unsent = None
        self._link.agree(False, False, False)

    def notify(self, index: int) -> None:
        if index == RECEIVE:
            self.frames_came()
        else:
            self.room_came()

    # The cable ------------------------------------------------------------------------------------

    def cable_changed(self) -> None:
        self.config_changed()

    def room_came(self) -> None:
        """Send what the driver has for us."""
        queue, link = self.queues[TRANSMIT], self._link
        while queue.ready:
            chain = self._unsent or queue.pop()
            if chain is None:
                break
            self._unsent = None
            if chain.writable_bytes or not (
                    header.MIN_FRAME <= chain.readable_bytes <= header.MAX_FRAME):
                self.broken(f"a frame of {chain.readable_bytes} bytes to send")
                return
            if not link.send(chain.readable):
                self._unsent = chain
                break
            self.sent += 1
            queue.push(chain, 0)
        self.interrupt(TRANSMIT)

    def frames_came(self) -> None:
        """Give the driver what has arrived, as far as it has buffers."""
        queue = self.queues[RECEIVE]
        if not queue.ready:
            return
        for _ in range(_BATCH):
            if self._pending:
                if not self._deliver(self._pending[0]):
                    break
                self._pending.popleft()
            elif not self._receive():
                break
        else:
            self._link.later()
        self.interrupt(RECEIVE)

    # Receiving ------------------------------------------------------------------------------------

    def _receive(self) -> bool:
        """One frame from the link. False: there is none."""
        views = self._room_for_any()
        if views is None:
            # Not enough for the largest there can be: see how large it is.
            length = self._link.receive((self._scratch,))
            if length:
                self._sort(self._scratch[:length])
            return bool(length)
        length = self._link.receive(views)
        if not length:
            return False
        told = header.parse(views[0])
        if header.MIN_FRAME <= length <= header.MAX_FRAME and (
                told.is_sound(length - header.SIZE) and self._takes(told)):
            count = self._count(length)
            views[0][:header.SIZE] = self._header(told, count)
            self._give(count, length)
        else:
            # What was written so far is in buffers that stay ours.
            self._sort(bytearray(b"".join(views))[:length])
        return True

    def _collect(self, size: int) -> bool:
        """Have free buffers for a frame of ``size`` bytes. False: the driver has given too few.

        Without MRG_RXBUF a frame has one chain, large enough or not.
        """
        queue, free = self.queues[RECEIVE], self._free
        merge = self.driver_features & F_MRG_RXBUF
        while self._free_bytes < size and (merge or not free):
            chain = queue.pop()
            if chain is None:
                return False
            if chain.readable_bytes or chain.writable_bytes < header.SIZE:
                self.broken("a buffer to receive into that is none")
                return False
            free.append(chain)
            self._free_bytes += chain.writable_bytes
        return True

    def _room_for_any(self) -> list[memoryview] | None:
        """Views of buffers that take the largest frame and show that one was larger; or None."""
        size = header.MAX_FRAME + 1
        if not self._collect(size):
            return None
        views: list[memoryview] = []
        room = 0
        for chain in self._free:
            views += chain.writable
            room += chain.writable_bytes
            if room >= size or not self.driver_features & F_MRG_RXBUF:
                break
        if room < size or len(views) > _IOV_MAX or len(views[0]) < header.SIZE:
            return None
        return views

    def _count(self, length: int) -> int:
        """How many of the free buffers a frame of ``length`` bytes takes."""
        count = 0
        for chain in self._free:
            count += 1
            length -= chain.writable_bytes
            if length <= 0:
                break
        return count

    def _give(self, count: int, length: int) -> None:
        """Give the driver the first ``count`` free buffers with a frame of ``length`` bytes."""
        queue, free = self.queues[RECEIVE], self._free
        for _ in range(count):
            chain = free.popleft()
            room = chain.writable_bytes
            self._free_bytes -= room
            queue.push(chain, min(room, length))
            length -= room
        self.received += 1

    def _header(self, told: header.Header, count: int) -> bytes:
        """The header for the driver: what it agreed to, and the number of buffers."""
        flags = told.flags & (header.NEEDS_CSUM | header.DATA_VALID)
        if not self.driver_features & F_GUEST_CSUM:
            flags = 0
        return header.HEADER.pack(flags, *told[1:-1], count)

    def _takes(self, told: header.Header) -> bool:
        """Whether the driver agreed to do what such a frame leaves to it."""
        features = self.driver_features
        if told.flags & header.NEEDS_CSUM and not features & F_GUEST_CSUM:
            return False
        if told.gso_type == header.GSO_NONE:
            return True
        if told.gso_type & header.GSO_ECN and not features & F_GUEST_ECN:
            return False
        return bool(features & _GSO_FEATURE[told.gso_type & ~header.GSO_ECN])

    def _sort(self, data: bytearray) -> None:
        """A frame that is not where it belongs: what it becomes is pending afterwards."""
        told = header.parse(data) if len(data) >= header.MIN_FRAME else None
        if told is None or len(data) > header.MAX_FRAME or (
                not told.is_sound(len(data) - header.SIZE)):
            self.dropped += 1
        elif self._takes(told):
            self._pending.append(data)
        else:
            packets = offload.plain_frames(data[header.SIZE:], told)
            self._pending += (bytearray(header.PLAIN) + packet for packet in packets)
            self.dropped += not packets

    def _deliver(self, data: bytearray) -> bool:
        """Copy a frame into buffers of the driver's. False: it has given too few."""
        if not self._collect(len(data)):
            return False
        free = self._free
        if free[0].writable_bytes < len(data) and not self.driver_features & F_MRG_RXBUF:
            self.dropped += 1  # larger than the driver wants
            return True
        count = self._count(len(data))
        data[:header.SIZE] = self._header(header.parse(data), count)
        rest = memoryview(data)
        for chain in free:
            rest = rest[chain.write(rest):]
            if not rest:
                break
        self._give(count, len(data))
        return True
