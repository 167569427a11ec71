# SPDX-License-Identifier: GPL-2.0-or-later
"""9P2000.L requests as Linux makes them, on a real folder."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest
from client import ROOT, Client, Refused

from bt.errors import InputError
from bt.ninep import server as server_module
from bt.ninep import wire
from bt.ninep.folder import Folder
from bt.ninep.server import Server

WRONLY, RDWR, CREATE, EXCL = 1, 2, 0o100, 0o200
MODE, UID, SIZE, ATIME, MTIME, ATIME_SET, MTIME_SET = 1, 2, 8, 16, 32, 128, 256


def refused(code: int):
    return pytest.raises(Refused, match=rf"^{code}$")


def attributes(client: Client, fid: int) -> list:
    return client.call("getattr", fid, (1 << 64) - 1)


def set_attributes(client: Client, fid: int, valid: int, *, mode: int = 0, uid: int = 0,
                   size: int = 0, atime: tuple[int, int] = (0, 0),
                   mtime: tuple[int, int] = (0, 0)) -> None:
    client.call("setattr", fid, valid, mode, uid, 0, size, *atime, *mtime)


def test_another_dialect_is_unknown(share: Path):
    server = Server(Folder(share, False))
    reply = server.answer(wire.request("version", wire.NO_TAG, 8192, b"9P2000.u"), 8192)
    assert wire.unpack("Is", reply[7:]) == [8192, b"unknown"]


def test_messages_are_never_larger_than_ours(share: Path):
    server = Server(Folder(share, False))
    reply = server.answer(wire.request("version", 0, 1 << 30, wire.VERSION), 8192)
    assert wire.unpack("Is", reply[7:]) == [server_module.MAX_MESSAGE, wire.VERSION]


def test_a_file_is_read(client: Client, share: Path):
    fid = client.open(b"file")
    assert client.call("read", fid, 0, 5) == [b"hello"]
    assert client.call("read", fid, 7, 100) == [b"guest\n"]
    assert client.call("read", fid, 100, 100) == [b""]
    answer = attributes(client, fid)
    status = (share / "file").stat()
    assert answer[2] == status.st_mode and answer[7] == 13
    assert answer[12] * 10**9 + answer[13] == status.st_mtime_ns


def test_a_read_fits_into_the_room_there_is(client: Client, share: Path):
    (share / "file").write_bytes(bytes(10_000))
    fid = client.open(b"file")
    assert client.call("read", fid, 0, 10_000, room=100) == [bytes(89)]


def test_directories_are_listed_in_pieces(client: Client, share: Path):
    for number in range(300):
        (share / "dir" / f"{number:03}{'x' * (number % 40)}").touch()
    expected = sorted([b".", b"..", *(os.fsencode(n) for n in os.listdir(share / "dir"))])
    for count in (200, 4096, 60_000):
        assert sorted(client.names(client.open(b"dir"), count)) == expected


def test_above_the_folder_is_the_folder(client: Client):
    (data,) = client.call("readdir", client.open(), 0, 8192)
    qids = {}
    while data:
        length = int.from_bytes(data[22:24], "little")
        qids[data[24:24 + length]] = data[5:13]
        data = data[24 + length:]
    assert qids[b".."] == qids[b"."]


def test_a_walk_says_how_far_it_got(client: Client):
    (qids,) = client.call("walk", ROOT, 9, [b"dir", b"nothing", b"more"])
    assert len(qids) == 1 and qids[0][0] == wire.QID_DIRECTORY
    with refused(errno.EBADF):
        attributes(client, 9)
    with refused(errno.ENOENT):
        client.call("walk", ROOT, 9, [b"nothing"])


def test_files_through_a_file_are_not_there(client: Client):
    with refused(errno.ENOENT):
        client.walk(b"file", b"x")


def test_fids_are_the_clients_and_limited(client: Client, monkeypatch: pytest.MonkeyPatch):
    fid = client.walk(b"file")
    with refused(errno.EBADF):
        client.call("walk", ROOT, fid, [])
    client.call("clunk", fid)
    with refused(errno.EBADF):
        client.call("clunk", fid)
    monkeypatch.setattr(server_module, "MAX_FIDS", 2)
    client.walk()
    with refused(errno.ENFILE):
        client.walk()


def test_open_files_are_limited(client: Client, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(server_module, "MAX_OPEN", 2)
    first = client.open(b"file")
    client.open(b"file")
    with refused(errno.EMFILE):
        client.open(b"file")
    client.call("clunk", first)
    client.open(b"file")


def test_a_new_session_drops_the_old_one(client: Client, share: Path):
    def held() -> int:
        fds = Path("/proc/self/fd")
        return [os.readlink(fds / fd) for fd in os.listdir(fds) if (fds / fd).is_symlink()].count(
            str(share / "file"))

    for _ in range(20):
        client.open(b"file")
    assert held() == 20
    Client(client.server)
    assert held() == 0


def test_nothing_is_changed_in_a_folder_to_read(client: Client, share: Path):
    fid = client.walk(b"file")
    directory = client.walk(b"dir")
    calls = [
        ("lopen", fid, WRONLY), ("lopen", fid, RDWR), ("lopen", fid, 0o1000),
        ("lcreate", directory, b"new", RDWR | CREATE, 0o644, 0),
        ("mkdir", directory, b"new", 0o755, 0), ("symlink", directory, b"new", b"x", 0),
        ("mknod", directory, b"new", 0o100644, 0, 0, 0), ("link", directory, fid, b"new"),
        ("rename", fid, directory, b"new"), ("renameat", ROOT, b"file", directory, b"new"),
        ("unlinkat", ROOT, b"file", 0), ("unlinkat", directory, b"deep", 0x200),
        ("setattr", fid, MODE, 0, 0, 0, 0, 0, 0, 0, 0),
        ("setattr", fid, SIZE, 0, 0, 0, 0, 0, 0, 0, 0),
    ]
    for call in calls:
        with refused(errno.EROFS):
            client.call(*call)
    with refused(errno.EROFS):
        client.call("remove", fid)
    opened = client.open(b"file")
    with refused(errno.EBADF):
        client.call("write", opened, 0, b"x")
    assert (share / "file").read_bytes() == b"hello, guest\n"
    assert sorted(os.listdir(share / "dir")) == ["deep", "here", "inner"]


def test_a_file_is_made_and_written(writer: Client, share: Path):
    fid = writer.walk(b"dir")
    writer.call("lcreate", fid, b"new", RDWR | CREATE | EXCL, 0o640, 0)
    assert writer.call("write", fid, 0, b"some data") == [9]
    assert writer.call("write", fid, 5, b"text") == [4]
    writer.call("fsync", fid, 0)
    assert writer.call("read", fid, 0, 100) == [b"some text"]
    assert (share / "dir" / "new").read_bytes() == b"some text"
    with refused(errno.EEXIST):
        writer.call("lcreate", writer.walk(b"dir"), b"new", CREATE | EXCL, 0o640, 0)


def test_no_file_becomes_set_user_id(writer: Client, share: Path):
    writer.call("lcreate", writer.walk(), b"evil", RDWR | CREATE, 0o6755, 0)
    fid = writer.walk(b"evil")
    set_attributes(writer, fid, MODE, mode=0o106755)
    assert (share / "evil").stat().st_mode & 0o7777 == 0o755
    with refused(errno.EPERM):
        set_attributes(writer, fid, UID, uid=12345)


def test_attributes_are_set(writer: Client, share: Path):
    fid = writer.walk(b"file")
    set_attributes(writer, fid, SIZE, size=5)
    assert (share / "file").read_bytes() == b"hello"
    set_attributes(writer, fid, ATIME | ATIME_SET | MTIME | MTIME_SET, atime=(5, 6), mtime=(7, 8))
    status = (share / "file").stat()
    assert (status.st_atime_ns, status.st_mtime_ns) == (5 * 10**9 + 6, 7 * 10**9 + 8)
    set_attributes(writer, fid, MTIME)
    status = (share / "file").stat()
    assert status.st_atime_ns == 5 * 10**9 + 6 and status.st_mtime_ns > 10**18
    with refused(errno.EINVAL):
        set_attributes(writer, fid, MTIME | MTIME_SET, mtime=(1, 10**9))
    with refused(errno.EFBIG):
        set_attributes(writer, fid, SIZE, size=(1 << 64) - 1)


def test_a_rename_is_seen_by_those_who_hold_the_file(writer: Client, share: Path):
    fid = writer.walk(b"dir", b"inner")
    below = writer.walk(b"dir")
    writer.call("renameat", ROOT, b"dir", ROOT, b"moved")
    assert attributes(writer, fid)[7] == 5
    assert writer.names(writer.open(b"moved"))
    writer.call("rename", fid, ROOT, b"top")
    writer.call("lopen", fid, 0)
    assert writer.call("read", fid, 0, 10) == [b"inner"]
    assert (share / "top").read_bytes() == b"inner"
    writer.call("mkdir", below, b"new", 0o755, 0)
    assert (share / "moved" / "new").is_dir()


def test_what_was_removed_is_gone_and_stays_gone(writer: Client, share: Path):
    fid = writer.walk(b"file")
    opened = writer.open(b"file")
    writer.call("unlinkat", ROOT, b"file", 0)
    (share / "file").write_text("another")
    with refused(errno.ENOENT):
        attributes(writer, fid)
    assert writer.call("read", opened, 0, 5) == [b"hello"]
    assert attributes(writer, opened)[7] == 13
    assert writer.read(b"file") == b"another"


def test_directories_and_links(writer: Client, share: Path):
    writer.call("mkdir", ROOT, b"new", 0o700, 0)
    with refused(errno.EEXIST):
        writer.call("mkdir", ROOT, b"new", 0o700, 0)
    writer.call("symlink", ROOT, b"link", b"file", 0)
    assert writer.call("readlink", writer.walk(b"link")) == [b"file"]
    writer.call("link", ROOT, writer.walk(b"file"), b"hard")
    assert (share / "hard").stat().st_nlink == 2
    writer.call("unlinkat", ROOT, b"new", 0x200)
    with refused(errno.ENOTEMPTY):
        writer.call("unlinkat", ROOT, b"dir", 0x200)


def test_statfs_and_locks(client: Client):
    assert client.call("statfs", ROOT)[0] == 0x01021997
    fid = client.open(b"file")
    assert client.call("lock", fid, 0, 0, 0, 0, 1, b"me") == [0]
    assert client.call("getlock", fid, 0, 3, 4, 1, b"me") == [2, 3, 4, 1, b"me"]


def test_what_is_not_there_is_said_to_be(client: Client):
    for call in (("xattrwalk", ROOT, 5, b"user.x"), ("xattrcreate", ROOT, b"user.x", 1, 0),
                 ("auth", 5, b"", b"", 0)):
        with refused(errno.EOPNOTSUPP):
            client.call(*call)
    reply = client.server.answer(wire.message(112, 3, b"\0" * 5), 100)  # Topen of 9P2000
    assert reply == wire.message(wire.RLERROR, 3, errno.EOPNOTSUPP.to_bytes(4, "little"))


def test_no_folder_no_server(tmp_path: Path):
    for name in ("absent", "file"):
        (tmp_path / "file").touch()
        with pytest.raises(InputError, match="cannot share"):
            Folder(tmp_path / name, False)
