# SPDX-License-Identifier: GPL-2.0-or-later
"""Packets of the remote serial protocol: bytes in, packets out. Pure.

``$data#cc``: the data, then its sum modulo 256 as two hexadecimal digits. ``}`` escapes the byte
that follows it XOR 0x20. ``*`` in what gdb sends would be run-length encoding, which it does not
use. 0x03 outside of a packet is an interrupt. (gdb manual, E.1 Overview.)
"""

from __future__ import annotations

from collections.abc import Iterator
from enum import Enum

#: The longest packet taken, data alone; what is longer is thrown away and not acknowledged.
MAX_PACKET = 0x10000
_ESCAPED = b"#$}*"


class Signal(Enum):
    """What can come between packets."""

    INTERRUPT = 0x03
    ACK = 0x2B      # +
    NACK = 0x2D     # -
    BROKEN = -1     # a packet whose sum was wrong, or that was too long


def encode(data: bytes) -> bytes:
    """``data`` as a packet."""
    out = bytearray(b"$")
    for byte in data:
        if byte in _ESCAPED:
            out += bytes((0x7D, byte ^ 0x20))
        else:
            out.append(byte)
    return bytes(out) + b"#%02x" % (sum(out[1:]) & 0xFF)


class Decoder:
    """Takes a stream in pieces of any size; gives packets (bytes) and Signals in order."""

    def __init__(self) -> None:
        self._body: bytearray | None = None     # of the packet being received
        self._sum = b""                         # its check sum so far
        self._ending = False
        self._long = False

    def feed(self, data: bytes) -> Iterator[bytes | Signal]:
        """What ``data`` completes."""
        for byte in data:
            found = self._byte(byte)
            if found is not None:
                yield found

    def _byte(self, byte: int) -> bytes | Signal | None:
        if self._ending:
            self._sum += bytes((byte,))
            return self._finish() if len(self._sum) == 2 else None
        if byte == 0x24:    # "$": a packet begins, whatever was before
            self._body, self._sum, self._long = bytearray(), b"", False
        elif self._body is None:
            return _SIGNALS.get(byte)
        elif byte == 0x23:  # "#"
            self._ending = True
        elif len(self._body) >= MAX_PACKET:
            self._long = True
        else:
            self._body.append(byte)
        return None

    def _finish(self) -> bytes | Signal:
        body, self._body, self._ending = self._body or b"", None, False
        try:
            right = not self._long and int(self._sum, 16) == sum(body) & 0xFF
        except ValueError:
            right = False
        return _unescape(body) if right else Signal.BROKEN


_SIGNALS = {signal.value: signal for signal in
            (Signal.INTERRUPT, Signal.ACK, Signal.NACK)}


def _unescape(body: bytes | bytearray) -> bytes:
    if 0x7D not in body:
        return bytes(body)
    out = bytearray()
    escaped = False
    for byte in body:
        if escaped:
            out.append(byte ^ 0x20)
            escaped = False
        elif byte == 0x7D:
            escaped = True
        else:
            out.append(byte)
    return bytes(out)
