# SPDX-License-Identifier: GPL-2.0-or-later
"""The debug console of Bochs and QEMU: a byte written to port 0xe9 is printed, no questions asked.

Source: Bochs' "port e9 hack"; a read gives 0xe9, which tells a guest that somebody listens.

Its neighbour in spirit, POST code port 0x80, needs no device: kernels write to it only to wait a
microsecond. It is absent, so the compiled core drops the write; the exit it costs is the delay.
"""

from __future__ import annotations

from collections.abc import Callable

from bt.machine.bus import Bus

PORT = 0xE9
_FLUSH_AT = 4096


class DebugPort:
    """Port 0xe9. ``on_output(data)`` gets the output by the line; None drops it."""

    def __init__(self, bus: Bus, on_output: Callable[[bytes], None] | None = None) -> None:
        self.on_output = on_output
        self._out = bytearray()
        bus.claim(self, PORT, 1)
        bus.publish(PORT, PORT)

    def flush(self) -> None:
        """Hand on the output collected so far."""
        if self._out:
            data = bytes(self._out)
            self._out.clear()
            if self.on_output is not None:
                self.on_output(data)

    def read_port(self, port: int, size: int) -> int:
        """The signature."""
        return PORT

    def write_port(self, port: int, size: int, value: int) -> None:
        """One byte of output."""
        self._out.append(value)
        if value == 10 or len(self._out) >= _FLUSH_AT:
            self.flush()
