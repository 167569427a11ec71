# SPDX-License-Identifier: GPL-2.0-or-later
"""Two cables' ends at one path, in one process."""

from __future__ import annotations

import os
import socket
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest
from netrig import Loop, NoteCard

from bt.errors import InputError
from bt.net import header
from bt.net.peer import GREETING, Peer

FRAME = header.PLAIN + bytes(60)


@pytest.fixture
def loop() -> Iterator[Loop]:
    loop = Loop()
    yield loop
    loop.close()


def end(loop: Loop, path: Path) -> NoteCard:
    peer = Peer(str(path))
    card = NoteCard(peer)
    peer.attach(loop.host, card)
    return card


def pair(loop: Loop, path: Path) -> tuple[NoteCard, NoteCard]:
    one, two = end(loop, path), end(loop, path)
    loop.until(lambda: one.link.up and two.link.up)
    return one, two


def test_frames_go_both_ways(loop: Loop, tmp_path: Path):
    one, two = pair(loop, tmp_path / "cable")
    assert stat.S_IMODE((tmp_path / "cable").stat().st_mode) == 0o600
    largest = bytes(header.MAX_FRAME)
    for frame in (FRAME, largest):
        assert one.link.send((frame[:12], frame[12:]))
        assert two.link.send((frame,))
    loop.until(lambda: len(one.frames) == len(two.frames) == 2)
    assert one.frames == two.frames == [FRAME, largest]
    for card in (one, two):
        card.link.close()
    assert not (tmp_path / "cable").exists()


def test_without_a_peer_frames_are_lost(loop: Loop, tmp_path: Path):
    one = end(loop, tmp_path / "cable")
    assert not one.link.up and one.link.send((FRAME,))
    one.link.close()


def test_a_slow_peer_holds_frames_up(loop: Loop, tmp_path: Path):
    one, two = pair(loop, tmp_path / "cable")
    two.takes = False
    sent = 0
    while one.link.send((bytes(60_000),)):
        sent += 1
        assert sent < 1000
    two.takes = True
    two.frames_came()
    loop.until(lambda: one.room and len(two.frames) == sent)
    assert one.link.send((FRAME,))


@pytest.mark.parametrize("who", ["listener", "connector"])
def test_a_cable_is_pulled_and_plugged_in_again(loop: Loop, tmp_path: Path, who: str):
    path = tmp_path / "cable"
    one, two = pair(loop, path)
    gone, stays = (one, two) if who == "listener" else (two, one)
    gone.link.close()
    loop.until(lambda: not stays.link.up)
    again = end(loop, path)
    loop.until(lambda: stays.link.up and again.link.up)
    assert stays.cable == [True, False, True]
    again.link.send((FRAME,))
    loop.until(lambda: stays.frames == [FRAME])


def test_a_third_waits_until_the_cable_is_free(loop: Loop, tmp_path: Path):
    one, two = pair(loop, tmp_path / "cable")
    third = end(loop, tmp_path / "cable")
    one.link.send((FRAME,))
    loop.until(lambda: two.frames)
    assert not third.link.up and not third.frames
    two.link.close()
    loop.until(lambda: third.link.up and one.link.up)
    one.link.send((FRAME,))
    loop.until(lambda: third.frames)


def test_a_socket_left_behind_is_no_obstacle(loop: Loop, tmp_path: Path):
    path = tmp_path / "cable"
    dead = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    dead.bind(str(path))
    dead.close()
    pair(loop, path)


@pytest.mark.parametrize("message", [b"", b"GET / HTTP/1.0", GREETING + b"x", GREETING[:-1]])
def test_what_is_no_ring1_is_hung_up_on(loop: Loop, tmp_path: Path, message: bytes):
    path = tmp_path / "cable"
    one = end(loop, path)
    other = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    other.connect(str(path))
    if message:
        other.send(message)
    else:
        other.close()
    two = end(loop, path)
    loop.until(lambda: one.link.up and two.link.up)


def test_a_listener_that_hangs_up_is_asked_now_and_then(loop: Loop, tmp_path: Path):
    path = tmp_path / "cable"
    server = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    server.bind(str(path))
    server.listen()
    card = end(loop, path)
    for _ in range(3):
        connection, _ = server.accept()
        connection.close()
        loop.until(lambda: card.link._fd < 0)
        loop.until(lambda: card.link._fd >= 0)
    assert card.cable == []


def test_a_file_is_no_cable(loop: Loop, tmp_path: Path):
    (tmp_path / "file").write_text("precious")
    (tmp_path / "link").symlink_to("file")
    for path in (tmp_path / "file", tmp_path / "link", tmp_path / "absent" / "x",
                 tmp_path / ("x" * 200)):
        with pytest.raises(InputError, match="as a cable"):
            end(loop, path)
    assert (tmp_path / "file").read_text() == "precious"


def test_a_name_taken_over_is_not_removed(loop: Loop, tmp_path: Path):
    path = tmp_path / "cable"
    card = end(loop, path)
    os.unlink(path)
    path.write_text("another's")
    card.link.close()
    assert path.read_text() == "another's"
