# SPDX-License-Identifier: GPL-2.0-or-later
"""The split virtqueue, from the device's side (virtio 1.2, 2.7).

Three areas in guest RAM, little-endian:

descriptors   16 bytes each: address u64, length u32, flags u16, next u16
driver area   "available ring": flags u16, index u16, heads u16[size], used_event u16
device area   "used ring": flags u16, index u16, {head u32, written u32}[size], avail_event u16

All of it is written by a stranger, at any time. So nothing is believed: a chain is walked once,
each descriptor is copied out before it is looked at, and what breaks a rule of the specification
stops the whole device (``broken``), since after that nothing in the ring means anything. What
cannot be wrong is left alone: buffers may overlap one another (a reader may read one page twice),
but not this queue's own rings.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from struct import Struct

from bt.machine.dma import Dma, DmaError

#: Largest queue a driver may ask for (2.7: a power of 2, at most 32768).
MAX_SIZE = 1024

DESC_NEXT = 1
DESC_WRITE = 2
DESC_INDIRECT = 4
AVAIL_NO_INTERRUPT = 1

_DESCRIPTOR = Struct("<QIHH")
_U16 = Struct("<H")
_USED = Struct("<II")

#: One buffer of a chain: guest-physical address and length in bytes.
Buffer = tuple[int, int]


class Chain:
    """One request: buffers to read from, then buffers to write to.

    ``readable`` and ``writable`` are views of guest RAM. Take them when they are used, and do not
    keep them while the guest runs: what is asked of the vCPU for a write holds until then only.
    """

    __slots__ = ("_dma", "_in", "_out", "head", "readable_bytes", "writable_bytes")

    def __init__(self, dma: Dma, head: int, out: list[Buffer], in_: list[Buffer]) -> None:
        self._dma = dma
        self.head = head
        self._out = out
        self._in = in_
        self.readable_bytes = sum(length for _, length in out)
        self.writable_bytes = sum(length for _, length in in_)

    @property
    def readable(self) -> list[memoryview]:
        """What the driver sends."""
        ram = self._dma.ram
        return [ram[gpa:gpa + length] for gpa, length in self._out]

    @property
    def writable(self) -> list[memoryview]:
        """Where the driver wants its answer."""
        return self._writable(self._in)

    def readable_range(self, offset: int, length: int) -> list[memoryview]:
        """Views of ``length`` bytes of what the driver sends, from ``offset``; fewer at the end."""
        ram = self._dma.ram
        return [ram[gpa:gpa + part] for gpa, part in _cut(self._out, offset, length)]

    def writable_range(self, offset: int, length: int) -> list[memoryview]:
        """The same of what the driver wants to be filled."""
        return self._writable(_cut(self._in, offset, length))

    def read(self, offset: int, length: int) -> bytes:
        """A copy of what the driver sends; fewer bytes at the end of it."""
        return b"".join(self.readable_range(offset, length))

    def write(self, data: bytes | bytearray | memoryview, offset: int = 0) -> int:
        """Copy ``data`` to where the driver wants it; how many bytes there was room for."""
        done = 0
        source = memoryview(data)
        for view in self.writable_range(offset, len(source)):
            view[:] = source[done:done + len(view)]
            done += len(view)
        return done

    def _writable(self, buffers: Iterable[Buffer]) -> list[memoryview]:
        ram, begin = self._dma.ram, self._dma.write_begin
        views = []
        for gpa, length in buffers:
            begin(gpa, length)
            views.append(ram[gpa:gpa + length])
        return views


def _cut(buffers: Iterable[Buffer], offset: int, length: int) -> list[Buffer]:
    """``length`` bytes from ``offset`` of what the buffers hold one after the other."""
    parts = []
    for gpa, size in buffers:
        if length <= 0:
            break
        if offset >= size:
            offset -= size
            continue
        part = min(size - offset, length)
        parts.append((gpa + offset, part))
        length -= part
        offset = 0
    return parts


class _Lie(Exception):
    """The driver broke a rule; the text says which."""


class Virtqueue:
    """One queue. The transport sets ``size`` and the three addresses, then calls ``enable``.

    ``broken(why)`` is called, once, when the driver breaks a rule; the queue is dead from then on
    until ``reset``. ``max_size``: the device's limit, a power of 2. Belongs to the vCPU's thread.
    """

    def __init__(self, dma: Dma, max_size: int, broken: Callable[[str], None]) -> None:
        assert 0 < max_size <= MAX_SIZE and max_size & (max_size - 1) == 0
        self._dma = dma
        self.max_size = max_size
        self._broken = broken
        self.reset()

    def reset(self) -> None:
        """As after power-on: not ready, addresses 0."""
        self.size = self.max_size
        self.descriptors = self.driver = self.device = 0  # addresses of the three areas
        self.event_index = False  # VIRTIO_F_EVENT_IDX was agreed on
        self.indirect = True  # VIRTIO_F_INDIRECT_DESC was agreed on
        self.enabled = False  # by the driver
        self.ready = False  # enabled, and nothing is wrong with it
        self._next = 0  # available index of the next chain
        self._used = 0
        self._signalled = 0  # used index at the last look at `wants_interrupt`
        self._out = 0  # chains popped and not pushed yet

    def enable(self) -> None:
        """The driver says the queue is set up: check where its areas are (2.7.1)."""
        self.enabled = True
        size = self.size
        areas = (
            ("descriptor area", self.descriptors, 16 * size, 16),
            ("driver area", self.driver, 6 + 2 * size, 2),
            ("device area", self.device, 6 + 8 * size, 4),
        )
        try:
            if not 0 < size <= self.max_size or size & (size - 1):
                raise _Lie(f"a queue of size {size}")
            for name, gpa, length, alignment in areas:
                if gpa % alignment:
                    raise _Lie(f"{name} at {gpa:#x}, which is not a multiple of {alignment}")
                try:
                    self._dma.check(gpa, length)
                except DmaError as error:
                    raise _Lie(f"{name}: {error}") from None
            ranges = sorted((gpa, gpa + length) for _, gpa, length, _ in areas)
            if any(ranges[i][1] > ranges[i + 1][0] for i in range(2)):
                raise _Lie("the queue's areas overlap")
        except _Lie as lie:
            self._fail(str(lie))
            return
        self._areas = ranges
        self._low, self._high = ranges[0][0], ranges[2][1]
        self._avail_event = self.device + 4 + 8 * size
        self._used_event = self.driver + 4 + 2 * size
        self.ready = True

    def __len__(self) -> int:
        """Chains that wait to be popped. 0 for a queue that is not ready."""
        if not self.ready:
            return 0
        waiting = (_U16.unpack_from(self._dma.ram, self.driver + 2)[0] - self._next) & 0xFFFF
        # A chain is out until it is pushed: more than `size` in all cannot be.
        if waiting + self._out > self.size:
            self._fail(f"available index jumps by {waiting} in a queue of {self.size}")
            return 0
        return waiting

    def pop(self) -> Chain | None:
        """The next request; None when there is none: then the driver's next chain is notified of.

        Every chain must be pushed some time.
        """
        if not len(self):
            if not self.ready or not self.event_index:
                return None
            # With event indexes a driver notifies only of the chain that is named here (2.7.10).
            # One that came before it could see that is not notified of, so look once more.
            self._dma.write_begin(self._avail_event, 2)
            _U16.pack_into(self._dma.ram, self._avail_event, self._next)
            if not len(self):
                return None
        slot = self.driver + 4 + 2 * (self._next & (self.size - 1))
        head: int = _U16.unpack_from(self._dma.ram, slot)[0]
        try:
            out, in_ = self._walk(head)
        except _Lie as lie:
            self._fail(f"descriptor chain {head}: {lie}")
            return None
        self._next = (self._next + 1) & 0xFFFF
        self._out += 1
        return Chain(self._dma, head, out, in_)

    def push(self, chain: Chain, written: int) -> None:
        """Give a chain back: ``written`` bytes of its writable buffers, from the first, are new."""
        if not self.ready:
            return  # stopped or reset since it was popped
        dma = self._dma
        slot = self.device + 4 + 8 * (self._used & (self.size - 1))
        self._used = (self._used + 1) & 0xFFFF
        self._out -= 1
        dma.write_begin(self.device, 6 + 8 * self.size)
        _USED.pack_into(dma.ram, slot, chain.head, written)
        _U16.pack_into(dma.ram, self.device + 2, self._used)

    def wants_interrupt(self) -> bool:
        """Whether the driver wants to hear of the chains pushed since this was last asked."""
        if not self.ready:
            return False
        ram, old, new = self._dma.ram, self._signalled, self._used
        self._signalled = new
        if old == new:
            return False
        if self.event_index:
            event: int = _U16.unpack_from(ram, self._used_event)[0]
            return (new - event - 1) & 0xFFFF < (new - old) & 0xFFFF  # 2.7.10
        flags: int = _U16.unpack_from(ram, self.driver)[0]
        return not flags & AVAIL_NO_INTERRUPT

    def _fail(self, why: str) -> None:
        self.ready = False
        self._broken(why)

    def _walk(self, head: int) -> tuple[list[Buffer], list[Buffer]]:
        """The buffers of a chain, each checked (2.7.5). Raises _Lie."""
        ram, limit = self._dma.ram, self.size
        low_end, contains = self._dma.low_end, self._dma.contains
        table, entries = self.descriptors, limit
        out: list[Buffer] = []
        in_: list[Buffer] = []
        index, seen, indirect, total = head, 0, False, 0
        while True:
            if index >= entries:
                raise _Lie(f"descriptor {index} of {entries}")
            seen += 1
            if seen > limit:
                raise _Lie("it is a loop, or longer than the queue")
            gpa, length, flags, next_ = _DESCRIPTOR.unpack_from(ram, table + 16 * index)
            if not length or (gpa > low_end - length and not contains(gpa, length)):
                raise _Lie(f"a buffer at {gpa:#x}+{length:#x} is not RAM")
            if flags & DESC_INDIRECT:
                if not self.indirect or indirect or flags & DESC_NEXT or length % 16:
                    raise _Lie("an indirect table where or as none may be")
                table, entries, index, indirect = gpa, length // 16, 0, True
                seen -= 1
                continue
            total += length
            if total >> 32:
                raise _Lie("more than 4 GB")
            if flags & DESC_WRITE:
                if gpa < self._high and gpa + length > self._low and any(
                        gpa < end and gpa + length > start for start, end in self._areas):
                    raise _Lie(f"a buffer at {gpa:#x} to be written over the queue itself")
                in_.append((gpa, length))
            elif in_:
                raise _Lie("a buffer to read behind one to write")
            else:
                out.append((gpa, length))
            if not flags & DESC_NEXT:
                return out, in_
            index = next_
