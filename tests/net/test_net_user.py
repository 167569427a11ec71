# SPDX-License-Identifier: GPL-2.0-or-later
"""The user-mode network: ARP and TCP by hand, with a server on the host."""

from __future__ import annotations

import ctypes
import socket
import threading
from collections.abc import Iterator

import pytest
from netrig import Loop, NoteCard, ethernet, tcp4

from bt.errors import InputError
from bt.net import header, slirp
from bt.net.header import GSO_TCPV4, NEEDS_CSUM
from bt.net.user import User

GUEST, GATEWAY = bytes((10, 0, 2, 15)), bytes((10, 0, 2, 2))
MAC = b"\x52\x54\0\0\0\1"


def installed() -> bool:
    try:
        ctypes.CDLL(slirp.LIBRARY)
    except OSError:
        return False
    return True


needs_slirp = pytest.mark.skipif(not installed(), reason=f"{slirp.PACKAGE} is not installed")


@pytest.fixture
def loop() -> Iterator[Loop]:
    loop = Loop()
    yield loop
    loop.close()


@pytest.fixture
def host_port() -> Iterator[int]:
    """A port of the host's where one connection is answered in capitals."""
    server = socket.create_server(("127.0.0.1", 0))

    def answer() -> None:
        connection, _ = server.accept()
        with connection:
            while data := connection.recv(65536):
                connection.sendall(data.upper())

    threading.Thread(target=answer, daemon=True).start()
    yield server.getsockname()[1]
    server.close()


def arp(loop: Loop, card: NoteCard) -> None:
    """Ask for the gateway's address; the stack learns ours by it."""
    request = b"\0\1\x08\0\6\4\0\1" + MAC + GUEST + bytes(6) + GATEWAY
    card.link.send((header.PLAIN, ethernet(0x0806), request))
    loop.until(lambda: [f for f in card.frames if f[24:26] == b"\x08\x06" and f[33] == 2])
    card.frames.clear()


def packet(port: int, seq: int, ack: int, flags: int, data: bytes = b"") -> bytearray:
    frame = tcp4(data, flags=flags, source=GUEST)
    frame[30:34] = GATEWAY
    frame[24:26] = bytes(2)
    from bt.net import offload
    frame[24:26] = offload.checksum(frame[14:34]).to_bytes(2, "big")
    frame[36:38] = port.to_bytes(2, "big")
    frame[38:46] = seq.to_bytes(4, "big") + ack.to_bytes(4, "big")
    length = len(frame) - 34
    pseudo = GUEST + GATEWAY + length.to_bytes(4, "big") + b"\0\0\0\6"
    frame[50:52] = (0xFFFF - offload.checksum(pseudo)).to_bytes(2, "big")
    return frame


OPEN = header.HEADER.pack(NEEDS_CSUM, 0, 0, 0, 34, 16, 1)
UNCUT = header.HEADER.pack(NEEDS_CSUM, GSO_TCPV4, 54, 1000, 34, 16, 1)


@needs_slirp
def test_a_connection_to_the_host(loop: Loop, host_port: int):
    user = User(host_loopback=True)
    card = NoteCard(user)
    user.attach(loop.host, card)
    user.agree(True, False, False)
    assert user.up
    arp(loop, card)
    card.link.send((OPEN, packet(host_port, 100, 0, 0x02)))
    loop.until(lambda: card.frames)
    (answer,) = card.frames
    assert answer[0] == header.DATA_VALID and answer[59] == 0x12, "SYN, ACK"
    theirs = int.from_bytes(answer[50:54], "big") + 1
    card.frames.clear()
    text = b"to be in capitals, " * 200
    card.link.send((UNCUT, packet(host_port, 101, theirs, 0x18, text)))

    def received() -> bytes:
        pieces = {int.from_bytes(f[50:54], "big"): f[12 + 14 + 20 + 20:] for f in card.frames}
        return b"".join(pieces[at] for at in sorted(pieces))[:len(text)]

    def acknowledge() -> bool:
        got = received()
        card.link.send((OPEN, packet(host_port, 101 + len(text), theirs + len(got), 0x10)))
        return got == text.upper()

    loop.until(acknowledge)
    user.close()
    assert not user.up


@needs_slirp
def test_the_host_is_out_of_reach_unless_asked_for(loop: Loop, host_port: int):
    user = User()
    card = NoteCard(user)
    user.attach(loop.host, card)
    arp(loop, card)
    card.link.send((OPEN, packet(host_port, 100, 0, 0x02)))
    loop.until(lambda: card.frames)
    assert card.frames[0][59] & 0x04 or card.frames[0][35] == 1, "RST, or unreachable by ICMP"
    user.close()


@needs_slirp
def test_a_port_in_use_cannot_be_forwarded(loop: Loop, host_port: int):
    user = User([(host_port, 80)])
    with pytest.raises(InputError, match=f"cannot forward port {host_port}"):
        user.attach(loop.host, NoteCard(user))


@needs_slirp
def test_garbage_goes_nowhere(loop: Loop):
    user = User()
    card = NoteCard(user)
    user.attach(loop.host, card)
    for junk in (b"", b"x", header.PLAIN, header.PLAIN + b"x" * 13, UNCUT + b"x" * 60,
                 OPEN + b"x" * 20, header.PLAIN + ethernet(0x0800) + b"\x4f" * 30,
                 bytes(header.MAX_FRAME + 100)):
        user.send((junk,))
    arp(loop, card)
    user.close()


def test_a_missing_library_is_named(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(slirp, "LIBRARY", "libnothere.so.0")
    with pytest.raises(InputError, match="install the package libslirp0"):
        slirp.load()
