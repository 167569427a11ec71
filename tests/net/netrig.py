# SPDX-License-Identifier: GPL-2.0-or-later
"""What a link needs of a machine, without one; a card that notes calls; packets to send."""

from __future__ import annotations

import queue
from collections.abc import Callable

from bt.machine.timers import TimerQueue
from bt.machine.watch import HostWatcher
from bt.net import header, offload
from bt.net.link import Host, Link


class Clock:
    """Time that passes when it is told to."""

    def __init__(self) -> None:
        self.ns = 0

    def now_ns(self) -> int:
        return self.ns


class Loop:
    """The vCPU's thread, as far as links are concerned: ``until`` runs what is posted."""

    def __init__(self) -> None:
        self.clock = Clock()
        self.timers = TimerQueue(self.clock)
        self._posted: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
        self.watcher = HostWatcher(self._posted.put)
        self.host = Host(self.watcher, self.timers, self.clock.now_ns)

    def until(self, condition: Callable[[], object], turns: int = 400) -> None:
        """Run until ``condition()``; fails when that takes about 10 seconds."""
        for _ in range(turns):
            if condition():
                return
            try:
                self._posted.get(timeout=0.025)()
            except queue.Empty:
                self.clock.ns += 100_000_000
            self.timers.run_due()
        raise AssertionError("it never came to that")

    def close(self) -> None:
        self.watcher.close()


class NoteCard:
    """A card that takes every frame of ``link`` and notes what else it is told."""

    def __init__(self, link: Link) -> None:
        self.link = link
        self.frames: list[bytes] = []
        self.room = 0
        self.cable: list[bool] = []
        self.takes = True

    def frames_came(self) -> None:
        while self.takes:
            buffer = bytearray(header.MAX_FRAME + 1)
            length = self.link.receive((buffer,))
            if not length:
                break
            self.frames.append(bytes(buffer[:length]))

    def room_came(self) -> None:
        self.room += 1

    def cable_changed(self) -> None:
        self.cable.append(self.link.up)


def tcp4(data: bytes, *, flags: int = 0x18, source: bytes = b"\x0a\0\1\1", vlan: bool = False,
         options: bytes = b"") -> bytearray:
    """A TCP packet over IPv4 with right lengths and IP checksum, its own checksum left open."""
    tcp = bytearray(b"\x12\x34\0\x50\0\0\x10\0\0\0\0\0\0\0\xff\xff\0\0\0\0" + options)
    tcp[12] = len(tcp) // 4 << 4
    tcp[13] = flags
    addresses = source + b"\x0a\0\1\2"
    length = len(tcp) + len(data)
    pseudo = addresses + (length & 0xFFFF).to_bytes(4, "big") + (6).to_bytes(4, "big")
    tcp[16:18] = (0xFFFF - offload.checksum(pseudo)).to_bytes(2, "big")
    ip = bytearray(b"\x45\0\0\0\xab\xcd\x40\0\x40\x06\0\0" + addresses)
    ip[2:4] = (20 + length & 0xFFFF).to_bytes(2, "big")
    ip[10:12] = offload.checksum(ip).to_bytes(2, "big")
    return bytearray(ethernet(0x0800, vlan) + ip + tcp + data)


def ethernet(kind: int, vlan: bool = False) -> bytes:
    """An Ethernet header."""
    tag = b"\x81\0\0\x07" if vlan else b""
    return b"\x52\x54\0\0\0\2\x52\x54\0\0\0\1" + tag + kind.to_bytes(2, "big")


def tcp6(data: bytes) -> bytearray:
    """The same over IPv6."""
    frame = tcp4(data)
    tcp = frame[34:]
    addresses = b"\xfe\x80" + bytes(13) + b"\1\xfe\x80" + bytes(13) + b"\2"
    pseudo = addresses + len(tcp).to_bytes(4, "big") + (6).to_bytes(4, "big")
    tcp[16:18] = (0xFFFF - offload.checksum(pseudo)).to_bytes(2, "big")
    ip = b"\x60\0\0\0" + (len(tcp) & 0xFFFF).to_bytes(2, "big") + b"\x06\x40" + addresses
    return bytearray(ethernet(0x86DD) + ip + tcp)
