# SPDX-License-Identifier: GPL-2.0-or-later
"""A 9P client of a few lines: requests by name, answers as their fields."""

from __future__ import annotations

from typing import Any

from bt.ninep import wire
from bt.ninep.server import Server

ROOM = 64 * 1024
ROOT = 0


class Refused(Exception):
    """The server answered Rlerror."""

    def __init__(self, code: int) -> None:
        super().__init__(code)
        self.errno = code


class Client:
    """Speaks to ``server``; the folder is fid 0."""

    def __init__(self, server: Server) -> None:
        self.server = server
        self.call("version", 256 * 1024, wire.VERSION)
        self.call("attach", ROOT, wire.NO_FID, b"root", b"", 0)
        self._next = 1

    def call(self, name: str, *fields: Any, room: int = ROOM) -> list[Any]:
        """The fields of the answer. Raises Refused."""
        reply = self.server.answer(wire.request(name, 7, *fields), room)
        size, number, tag = wire.HEADER.unpack_from(reply)
        assert size == len(reply) <= room and tag == 7
        body = reply[wire.HEADER.size:]
        if number == wire.RLERROR:
            raise Refused(wire.unpack("I", body)[0])
        assert number == wire.NUMBERS[name] + 1
        return wire.unpack(wire.MESSAGES[number - 1].reply, body)

    def walk(self, *names: bytes, start: int = ROOT) -> int:
        """A new fid; all names must be there."""
        fid, self._next = self._next, self._next + 1
        (qids,) = self.call("walk", start, fid, list(names))
        if len(qids) < len(names):
            raise Refused(2)
        return fid

    def open(self, *names: bytes, flags: int = 0) -> int:
        """A new open fid."""
        fid = self.walk(*names)
        self.call("lopen", fid, flags)
        return fid

    def read(self, *names: bytes) -> bytes:
        """The beginning of a file."""
        fid = self.open(*names)
        try:
            return self.call("read", fid, 0, 4096)[0]
        finally:
            self.call("clunk", fid)

    def names(self, fid: int, count: int = 4096) -> list[bytes]:
        """What is in an open directory."""
        found, offset = [], 0
        while True:
            (data,) = self.call("readdir", fid, offset, count)
            if not data:
                return found
            while data:
                offset = int.from_bytes(data[13:21], "little")
                length = int.from_bytes(data[22:24], "little")
                found.append(data[24:24 + length])
                data = data[24 + length:]
