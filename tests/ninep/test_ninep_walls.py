# SPDX-License-Identifier: GPL-2.0-or-later
"""A guest that tries to get out of its folder, or to do harm inside it."""

from __future__ import annotations

import errno
import os
import threading
from pathlib import Path

import pytest
from client import ROOT, Client, Refused

from bt.ninep import folder as folder_module


def refused(*codes: int):
    return pytest.raises(Refused, match="^(" + "|".join(map(str, codes)) + ")$")


@pytest.mark.parametrize("name", [b"../secret", b"/etc/passwd", b"dir/../../secret", b"/", b"",
                                  b".", b"a\0b", b"x" * 256, b"dir/inner"])
def test_a_name_is_one_name(writer: Client, name: bytes):
    with refused(errno.EINVAL, errno.ENAMETOOLONG):
        writer.call("walk", ROOT, 50, [name])
    with refused(errno.EINVAL, errno.ENAMETOOLONG):
        writer.call("lcreate", writer.walk(), name, 0o102, 0o644, 0)
    with refused(errno.EINVAL, errno.ENAMETOOLONG):
        writer.call("mkdir", ROOT, name, 0o755, 0)
    with refused(errno.EINVAL, errno.ENAMETOOLONG):
        writer.call("renameat", ROOT, b"file", ROOT, name)
    with refused(errno.EINVAL, errno.ENAMETOOLONG):
        writer.call("unlinkat", ROOT, name, 0)


def test_up_from_the_folder_is_the_folder(client: Client):
    (qids,) = client.call("walk", ROOT, 50, [b"..", b"..", b"dir", b"..", b".."])
    assert len(qids) == 5 and qids[0] == qids[4] == qids[1]
    with refused(errno.ENOENT):
        client.walk(b"..", b"secret")


def test_up_is_no_name_for_a_new_file(writer: Client):
    for call in (("lcreate", writer.walk(b"dir"), b"..", 0o102, 0o644, 0),
                 ("mkdir", ROOT, b"..", 0o755, 0), ("symlink", ROOT, b"..", b"x", 0),
                 ("unlinkat", writer.walk(b"dir"), b"..", 0x200),
                 ("renameat", writer.walk(b"dir"), b"..", ROOT, b"x"),
                 ("renameat", ROOT, b"dir", writer.walk(b"dir"), b"..")):
        with refused(errno.EEXIST):
            writer.call(*call)


def test_links_are_data(writer: Client):
    assert writer.call("readlink", writer.walk(b"out")) == [b"../secret"]
    for link in (b"out", b"up"):
        with refused(errno.ELOOP):
            writer.open(link)
        with refused(errno.ENOENT):
            writer.walk(link, b"secret")
        with refused(errno.ELOOP):
            writer.call("setattr", writer.walk(link), 8, 0, 0, 0, 0, 0, 0, 0, 0)
        with refused(errno.EOPNOTSUPP):
            writer.call("setattr", writer.walk(link), 1, 0o777, 0, 0, 0, 0, 0, 0, 0)
        with refused(errno.EPERM):
            writer.call("link", ROOT, writer.walk(link), b"hard")
        with refused(errno.ELOOP, errno.EEXIST):
            writer.call("lcreate", writer.walk(), link, 0o102, 0o644, 0)
        with refused(errno.ENOTDIR, errno.ELOOP):
            writer.call("mkdir", writer.walk(link), b"x", 0o755, 0)


def test_a_link_made_by_the_guest_leads_nowhere(writer: Client, share: Path):
    writer.call("symlink", ROOT, b"root", b"/", 0)
    writer.call("symlink", ROOT, b"s", os.fsencode(share.parent / "secret"), 0)
    for names in ([b"root", b"etc"], [b"s", b"x"]):
        with refused(errno.ENOENT):
            writer.walk(*names)
    with refused(errno.ELOOP):
        writer.open(b"s")
    assert (share.parent / "secret").read_bytes() == b"secret"


def test_what_is_no_file_is_not_opened(writer: Client, share: Path):
    with refused(errno.EACCES):
        writer.open(b"fifo")  # and does not wait for a writer
    with refused(errno.EACCES):
        writer.call("lcreate", writer.walk(), b"fifo", 0o102, 0o644, 0)
    if os.geteuid() == 0:
        os.mknod(share / "null", 0o20666, os.makedev(1, 3))
        with refused(errno.EACCES):
            writer.open(b"null")
    for kind in (0o020644, 0o060644, 0o010644, 0o140644):
        with refused(errno.EPERM):
            writer.call("mknod", ROOT, b"node", kind, 1, 3, 0)


def test_a_folder_that_is_moved_away_is_gone(client: Client, share: Path):
    fid = client.walk(b"dir", b"inner")
    directory = client.walk(b"dir")
    os.rename(share / "dir", share.parent / "elsewhere")
    (share.parent / "elsewhere" / "private").write_text("secret")
    with refused(errno.ENOENT):
        client.call("getattr", fid, 0)
    with refused(errno.ENOENT):
        client.walk(b"private", start=directory)
    with refused(errno.ENOENT):
        client.call("lopen", directory, 0)


def test_a_folder_that_becomes_a_link_is_not_followed(client: Client, share: Path):
    fid = client.walk(b"dir")
    (share.parent / "elsewhere").mkdir()
    (share.parent / "elsewhere" / "inner").write_text("secret")
    os.rename(share / "dir", share / "was")
    (share / "dir").symlink_to("../elsewhere")
    with refused(errno.ENOTDIR, errno.ELOOP):
        client.walk(b"inner", start=fid)


def test_the_folder_can_only_get_so_deep(writer: Client):
    fid = writer.walk()
    for _ in range(folder_module.MAX_DEPTH - 1):
        writer.call("mkdir", fid, b"d", 0o755, 0)
        fid = writer.walk(b"d", start=fid)
    with refused(errno.ENAMETOOLONG):
        writer.call("mkdir", fid, b"d", 0o755, 0)


def test_somebody_else_renames_all_the_time(client: Client, share: Path):
    """Whatever the moment, what is read is never the secret, and the server never fails."""
    outside = share.parent / "outside"
    outside.mkdir()
    (outside / "inner").write_bytes(b"secret")
    stop = threading.Event()

    def rename() -> None:
        while not stop.is_set():
            os.rename(share / "dir", share / "was")
            os.symlink("../outside", share / "dir")
            os.unlink(share / "dir")
            os.rename(share / "was", share / "dir")

    thread = threading.Thread(target=rename)
    thread.start()
    seen = set()
    try:
        for _ in range(1500):
            try:
                seen.add(client.read(b"dir", b"inner"))
            except Refused as error:
                assert error.errno in (errno.ENOENT, errno.ENOTDIR, errno.ELOOP)
    finally:
        stop.set()
        thread.join()
    assert seen <= {b"inner"}
