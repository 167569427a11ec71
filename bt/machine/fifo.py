# SPDX-License-Identifier: GPL-2.0-or-later
"""A data port's buffer that the compiled core can empty and fill by itself.

A disk without DMA moves each byte through one port, by REP INS and REP OUTS. Asking Python for each
element would cost a hundred times the copy. So the device puts a block here, and the core copies
between it and guest memory; Python hears of the whole block when it is done.
"""

from __future__ import annotations

from array import array
from collections.abc import Callable

SIZE = 64 * 1024
_NO_PORT = 1 << 32
_PORT, _AT, _END, _OUTPUT = range(4)


class Fifo:
    """At most one block at a time, for one port. Belongs to the vCPU's thread.

    ``state`` (64-bit words: port, bytes done, bytes in all, 1 for OUT) and ``buffer`` are read and
    written by the core, so they are made once. ``data`` is the buffer, for the device.
    """

    def __init__(self) -> None:
        self.state = array("Q", [_NO_PORT, 0, 0, 0])
        self.buffer = bytearray(SIZE)
        self.data = memoryview(self.buffer)
        self._done: Callable[[int], None] | None = None

    def open(self, port: int, length: int, *, output: bool, done: Callable[[int], None]) -> None:
        """A block of ``length`` bytes (1 to SIZE), from ``data`` for IN and to it for OUT at
        ``port``. ``done(length)`` is called when the guest has moved all of it."""
        assert 0 < length <= SIZE
        self._done = done
        self.state[_PORT], self.state[_AT] = port, 0
        self.state[_END], self.state[_OUTPUT] = length, output

    def close(self) -> None:
        """Drop the block; nobody is told."""
        self.state[_PORT] = _NO_PORT
        self.state[_AT] = self.state[_END] = 0

    def read(self, size: int) -> int:
        """What one IN of ``size`` bytes takes; zeroes when there is nothing left."""
        at, end, output = self.state[_AT], self.state[_END], self.state[_OUTPUT]
        if output or at == end:
            return 0
        value = int.from_bytes(self.data[at:min(at + size, end)], "little")
        self._advance(min(at + size, end))
        return value

    def write(self, size: int, value: int) -> None:
        """What one OUT adds; dropped when nothing is wanted."""
        at, end, output = self.state[_AT], self.state[_END], self.state[_OUTPUT]
        if not output or at == end:
            return
        stop = min(at + size, end)
        self.data[at:stop] = value.to_bytes(size, "little")[:stop - at]
        self._advance(stop)

    def _advance(self, at: int) -> None:
        self.state[_AT] = at
        if at == self.state[_END]:
            self.finish()

    def finish(self) -> None:
        """All of the block has been moved: by the calls above, or by the core, which then calls."""
        length, done = self.state[_END], self._done
        self.close()
        if done is not None:
            done(length)
