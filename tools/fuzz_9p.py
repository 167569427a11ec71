#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0-or-later
"""Throw 9P requests at the file server, right ones and damaged ones, and look at what it does.

    python tools/fuzz_9p.py [--seconds 300] [--seed 1]

The folder may be written to and lies beside a secret. The server must answer everything, within the
room it has, without an exception; no answer may hold the secret; and nothing outside the folder may
be another than before. A failure names the seed and the number of the request.
"""

from __future__ import annotations

import argparse
import os
import random
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from bt.ninep import wire
from bt.ninep.folder import Folder
from bt.ninep.server import Server

SECRET = b"the secret beside the folder"
_NAMES = [b"file", b"dir", b"deep", b"new", b"other", b"out", b"up", b"fifo", b"..", b".", b"",
          b"../secret", b"/etc/passwd", b"a\0b", b"secret", b"x" * 255, b"y" * 300, b"\xff\xfe"]
_NUMBERS = [0, 1, 2, 3, 7, 16, 100, 4095, 4096, 0xFFFF, 1 << 31, (1 << 32) - 1, (1 << 63) - 1,
            1 << 63, (1 << 64) - 1]
#: Requests that get a client somewhere come more often.
_OFTEN = ["walk", "walk", "walk", "lopen", "read", "readdir", "lcreate", "write", "mkdir",
          "renameat", "unlinkat", "clunk", "setattr", "symlink"]


def make_tree(top: Path) -> Path:
    """A folder to share, with everything in it that could lead out; the secret is beside it."""
    (top / "secret").write_bytes(SECRET)
    share = top / "share"
    (share / "dir" / "deep").mkdir(parents=True)
    (share / "file").write_bytes(b"public")
    (share / "out").symlink_to("../secret")
    (share / "up").symlink_to("..")
    os.mkfifo(share / "fifo")
    return share


class Fuzzer:
    """Requests from one seed, sent to one server."""

    def __init__(self, top: Path, seed: int) -> None:
        self._random = random.Random(seed)
        self._top = top
        self._server = Server(Folder(make_tree(top), writable=True))
        self._before = self._outside()
        self.sent = 0
        self.answered = 0
        self._begin()

    def close(self) -> None:
        """Close what is open."""
        self._server.close()

    def _outside(self) -> Any:
        secret = self._top / "secret"
        status = secret.stat()
        return (sorted(os.listdir(self._top)), secret.read_bytes(), status.st_mode,
                status.st_nlink, status.st_mtime_ns)

    def _begin(self) -> None:
        self._send(wire.request("version", 0, 65536, wire.VERSION), 65536)
        self._send(wire.request("attach", 0, 0, wire.NO_FID, b"", b"", 0), 65536)

    def step(self) -> None:
        """A request or three, and a look at the answers."""
        rng = self._random
        if rng.random() < 0.002:
            self._begin()
        if rng.random() < 0.1:  # the guest's way back to the folder
            for request in (wire.request("clunk", 0, 0),
                            wire.request("attach", 0, 0, wire.NO_FID, b"", b"", 0)):
                self._send(request, 65536)
        name = rng.choice(_OFTEN) if rng.random() < 0.8 else rng.choice(list(wire.NUMBERS))
        fields = [self._field(letter) for letter in wire.MESSAGES[wire.NUMBERS[name]].request]
        data = wire.request(name, rng.getrandbits(16), *fields)
        if rng.random() < 0.1:
            data = self._damage(data)
        self._send(data, rng.choice((0, 7, 11, 12, 100, 4096, 65536, 65536, 65536)))
        if self.sent % 500 == 0 and self._outside() != self._before:
            raise AssertionError("something outside the folder has changed")

    def _field(self, letter: str) -> Any:
        rng = self._random
        if letter == "s":
            return self._name()
        if letter == "d":
            return rng.randbytes(rng.choice((0, 1, 100, 5000)))
        if letter == "w":
            return [self._name() for _ in range(rng.choice((0, 0, 0, 1, 1, 1, 2, 3, 16)))]
        bits = {"B": 8, "H": 16, "I": 32, "Q": 64}[letter]
        number = rng.randrange(4) if rng.random() < 0.9 else rng.choice(_NUMBERS)
        return number & (1 << bits) - 1

    def _name(self) -> bytes:
        rng = self._random
        return rng.choice(_NAMES[:5] if rng.random() < 0.7 else _NAMES)

    def _damage(self, data: bytes) -> bytes:
        rng = self._random
        damaged = bytearray(data)
        for _ in range(rng.randrange(1, 4)):
            what = rng.randrange(3)
            if what == 0 and damaged:
                damaged[rng.randrange(len(damaged))] = rng.getrandbits(8)
            elif what == 1:
                del damaged[rng.randrange(len(damaged) + 1):]
            else:
                damaged += rng.randbytes(rng.randrange(20))
        if rng.random() < 0.7 and len(damaged) >= 4:
            damaged[:4] = len(damaged).to_bytes(4, "little")
        return bytes(damaged)

    def _send(self, data: bytes, room: int) -> None:
        self.sent += 1
        reply = self._server.answer(data, room)
        if not reply:
            if len(data) >= 7 and room >= 11:
                raise AssertionError("no answer")
            return
        size, number, tag = wire.HEADER.unpack_from(reply)
        if size != len(reply) or len(reply) > max(room, 11) or tag != wire.HEADER.unpack_from(
                data)[2]:
            raise AssertionError(f"a wrong answer: {reply[:20]!r}")
        if SECRET in reply:
            raise AssertionError("the secret is out")
        self.answered += number != wire.RLERROR


def fuzz(seconds: float, seed: int) -> tuple[int, int]:
    """Run for so long. Returns requests sent, and answered with something else than an error."""
    sent = answered = 0
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        with tempfile.TemporaryDirectory(prefix="fuzz-9p-") as top:
            fuzzer = Fuzzer(Path(top), seed)
            try:
                # A folder that was fuzzed for long has nothing left to find: a new one by and by.
                while fuzzer.sent < 20_000 and time.monotonic() < end:
                    fuzzer.step()
            except BaseException:
                print(f"seed {seed}, request {fuzzer.sent}", file=sys.stderr)
                raise
            finally:
                fuzzer.close()
        sent += fuzzer.sent
        answered += fuzzer.answered
        seed += 1
    return sent, answered


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=300)
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    sent, answered = fuzz(options.seconds, options.seed)
    print(f"{sent} requests, {answered} of them granted")
    return 0


if __name__ == "__main__":
    sys.exit(main())
