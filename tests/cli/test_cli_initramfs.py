# SPDX-License-Identifier: GPL-2.0-or-later
from __future__ import annotations

import os
import shutil
import subprocess

import pytest

from bt.errors import InputError
from guests.linux import initramfs

BUSYBOX = b"\x7fELF....\0[\0[[\0ash\0busybox\0cat\0sh\0\0more"

needs_cpio = pytest.mark.skipif(shutil.which("cpio") is None, reason="needs cpio")


def listing(archive: bytes) -> list[list[str]]:
    """``cpio -tv``'s columns for each entry."""
    result = subprocess.run(["cpio", "-itvn"], input=archive, capture_output=True, check=True)
    return [line.split() for line in result.stdout.decode().splitlines()]


def test_applets_are_read_from_the_binary():
    assert initramfs.applets(BUSYBOX) == ["[", "[[", "ash", "busybox", "cat", "sh"]
    assert initramfs.applets(b"no shell in here") == []


@needs_cpio
def test_base_archive_is_what_cpio_reads():
    entries = {row[-3] if row[-2] == "->" else row[-1]: row for row in listing(base())}
    assert entries["dev/console"][0] == "crw-------"
    assert entries["dev/console"][4:6] == ["5,", "1"]
    assert entries["dev/ttyS2"][4:6] == ["4,", "66"]
    assert entries["bin"][0] == "drwxr-xr-x"
    assert entries["init"][0] == "-rwxr-xr-x"
    assert entries["bin/busybox"][4] == str(len(BUSYBOX))
    assert entries["bin/cat"][-3:] == ["bin/cat", "->", "busybox"]
    assert entries["bin/["][0] == "lrwxrwxrwx"
    assert all(row[2:4] == ["0", "0"] for row in entries.values()), "everything is root's"


@needs_cpio
def test_files_come_out_byte_for_byte(tmp_path):
    archive = initramfs.command_cpio(["cat", "it's", "a b", "$HOME", "\udcff\n"])
    subprocess.run(["cpio", "-id", "--quiet"], input=archive, cwd=tmp_path, check=True)
    script = (tmp_path / "ring1" / "cmd").read_bytes()
    assert script == b"exec 'cat' 'it'\\''s' 'a b' '$HOME' '\xff\n'\n"


@pytest.mark.parametrize("word", ["plain", "", "it's", "''", '"$(x)`y`\\', "a\nb", "*", "-n"])
def test_a_shell_reads_back_what_was_quoted(word):
    script = b"printf %s " + initramfs.quote(word)
    assert subprocess.run(["sh", "-c", script], capture_output=True).stdout == os.fsencode(word)


def test_archives_can_follow_one_another():
    assert len(base()) % 512 == 0
    assert len(initramfs.command_cpio(["true"])) % 512 == 0


@needs_cpio
def test_a_fifo_only_when_there_is_input():
    modes = {row[-1]: row[0] for row in listing(initramfs.command_cpio(["cat"], stdin=True))}
    assert modes["ring1/stdin"].startswith("p")
    assert all("stdin" not in row[-1] for row in listing(initramfs.command_cpio(["cat"])))


@pytest.mark.parametrize("argv", [[], [""]])
def test_no_command(argv):
    with pytest.raises(InputError, match="no command"):
        initramfs.command_cpio(argv)


def test_exit_program_is_a_small_static_program():
    program = initramfs.exit_program()
    header = program[:64]
    assert header[:5] == b"\x7fELF\x02" and header[16:20] == b"\x02\0\x3e\0"
    assert len(program) < 512


def test_base_archive_is_cached_and_remade(tmp_path):
    busybox = tmp_path / "busybox"
    busybox.write_bytes(BUSYBOX)
    first = initramfs.initramfs(busybox)
    (cached,) = tmp_path.glob("initramfs-*.cpio")
    assert cached.read_bytes() == first == base()
    cached.write_bytes(b"from the cache")
    assert initramfs.initramfs(busybox) == b"from the cache"
    newer = BUSYBOX + b"newer"
    busybox.write_bytes(newer)
    assert newer in initramfs.initramfs(busybox)
    assert len(list(tmp_path.glob("initramfs-*.cpio"))) == 2
    assert initramfs.initramfs(busybox, [b"more"]).endswith(b"more")


def test_a_cache_that_cannot_be_written_is_no_error(tmp_path):
    busybox = tmp_path / "busybox"
    busybox.write_bytes(BUSYBOX)
    initramfs.initramfs(busybox)
    (cached,) = tmp_path.glob("initramfs-*.cpio")
    cached.unlink()
    cached.mkdir()
    assert initramfs.initramfs(busybox) == base()


def test_unreadable_busybox(tmp_path):
    with pytest.raises(InputError, match="cannot read"):
        initramfs.initramfs(tmp_path / "busybox")


def base() -> bytes:
    return initramfs.base_cpio(BUSYBOX)
