# SPDX-License-Identifier: GPL-2.0-or-later
"""A TAP interface, where this machine permits one."""

from __future__ import annotations

import fcntl
import os
import socket
import struct
from collections.abc import Iterator

import pytest
from netrig import Loop, NoteCard

from bt.errors import InputError
from bt.net import header, tap
from bt.net.tap import Tap

_SIOCGIFFLAGS, _SIOCSIFFLAGS, _IFF_UP = 0x8913, 0x8914, 1


@pytest.fixture
def loop() -> Iterator[Loop]:
    loop = Loop()
    yield loop
    loop.close()


def set_up(name: str) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as control:
        request = struct.pack("16sH22x", name.encode(), 0)
        flags = struct.unpack_from("H", fcntl.ioctl(control, _SIOCGIFFLAGS, request), 16)[0]
        fcntl.ioctl(control, _SIOCSIFFLAGS, struct.pack("16sH22x", name.encode(), flags | _IFF_UP))


def test_frames_of_the_host_arrive(loop: Loop):
    name = f"bt{os.getpid() % 100000}"
    link = Tap(name)
    card = NoteCard(link)
    try:
        link.attach(loop.host, card)
    except InputError as error:
        pytest.skip(str(error))
    link.agree(True, True, True)
    set_up(name)
    # The host looks for IPv6 neighbours and routers, or says something else, by and by.
    with socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0) as host:
        host.bind((name, 0))
        host.send(b"\xff" * 6 + b"\2\0\0\0\0\1" + b"\x88\xb5" + b"hello, guest" * 5)
        loop.until(lambda: [f for f in card.frames if b"hello, guest" in f])
        host.close()
    with socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.ntohs(0x88B5)) as host:
        host.bind((name, 0x88B5))
        host.settimeout(10)
        assert link.send((header.PLAIN, b"\xff" * 6 + b"\2\0\0\0\0\2" + b"\x88\xb5",
                          b"hello, host" * 5))
        assert b"hello, host" in host.recv(2000)
    link.close()


@pytest.mark.parametrize("name", ["", "x" * 16, "a/b", "tap%d"])
def test_names(name: str):
    with pytest.raises(InputError, match="no name for a TAP"):
        Tap(name)


def test_no_device_is_one_line(loop: Loop, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(tap, "_DEVICE", "/nonexistent")
    with pytest.raises(InputError, match="cannot use tap:t0: there is no"):
        link = Tap("t0")
        link.attach(loop.host, NoteCard(link))
