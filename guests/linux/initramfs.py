# SPDX-License-Identifier: GPL-2.0-or-later
"""The root file system of the Linux guest: newc cpio archives, made in memory.

The kernel unpacks any number of concatenated archives over one another
(Documentation/driver-api/early-userspace/buffer-format.rst). So the large part, busybox and /init,
is packed once and cached, and a command to run is a few hundred bytes appended to it.

Nothing is compressed: the guest's CPU is simulated, and copying is the cheapest thing it does.
"""

from __future__ import annotations

import os
import struct
import zlib
from collections.abc import Iterable, Sequence
from functools import cache
from pathlib import Path

from bt.errors import InputError

HERE = Path(__file__).parent

_S_IFIFO, _S_IFCHR, _S_IFDIR, _S_IFREG, _S_IFLNK = 0o010000, 0o020000, 0o040000, 0o100000, 0o120000

# name -> (major, minor), Documentation/admin-guide/devices.txt. devtmpfs has them too, but the
# kernel opens /dev/console for /init before anything is mounted.
_DEVICES = {
    "dev/console": (5, 1),
    "dev/null": (1, 3),
    "dev/ttyS0": (4, 64),
    "dev/ttyS1": (4, 65),
    "dev/ttyS2": (4, 66),
}
_DIRECTORIES = ("bin", "dev", "etc", "proc", "ring1", "root", "sys", "tmp")
_FSTAB = b"""\
proc /proc proc defaults 0 0
sysfs /sys sysfs defaults 0 0
devtmpfs /dev devtmpfs defaults 0 0
"""
_PASSWD = b"root::0:0:root:/root:/bin/sh\n"

# The applet names lie in busybox as one run of NUL-terminated strings, sorted, so these two come
# first in any build that has a shell. Reading them needs no running of a foreign binary.
_APPLETS_START = b"\0[\0[[\0"


def applets(busybox: bytes) -> list[str]:
    """The applets compiled into a busybox binary; empty when they cannot be found."""
    start = busybox.find(_APPLETS_START)
    if start < 0:
        return []
    end = busybox.index(b"\0\0", start + 1)
    return [name.decode() for name in busybox[start + 1 : end].split(b"\0")]


class Cpio:
    """Writer of a "newc" archive (cpio(5)): fields are 8 hexadecimal digits, all padded to 4."""

    def __init__(self) -> None:
        self._parts: list[bytes] = []
        self._inode = 0

    def _entry(self, name: str, mode: int, data: bytes, rdev: tuple[int, int] = (0, 0)) -> None:
        self._inode += 1
        raw = os.fsencode(name) + b"\0"
        nlink = 2 if mode & 0o170000 == _S_IFDIR else 1
        # ino mode uid gid nlink mtime filesize devmajor devminor rdevmajor rdevminor namesize check
        fields = (self._inode, mode, 0, 0, nlink, 0, len(data), 0, 0, *rdev, len(raw), 0)
        head = b"070701" + b"".join(b"%08x" % field for field in fields) + raw
        self._parts += (head, bytes(-len(head) % 4), data, bytes(-len(data) % 4))

    def directory(self, name: str, mode: int = 0o755) -> None:
        """Add a directory. Parents must have been added before their entries."""
        self._entry(name, _S_IFDIR | mode, b"")

    def file(self, name: str, data: bytes, mode: int = 0o644) -> None:
        """Add a regular file."""
        self._entry(name, _S_IFREG | mode, data)

    def symlink(self, name: str, target: str) -> None:
        """Add a symbolic link."""
        self._entry(name, _S_IFLNK | 0o777, os.fsencode(target))

    def device(self, name: str, major: int, minor: int, mode: int = 0o600) -> None:
        """Add a character device node."""
        self._entry(name, _S_IFCHR | mode, b"", (major, minor))

    def fifo(self, name: str, mode: int = 0o600) -> None:
        """Add a named pipe."""
        self._entry(name, _S_IFIFO | mode, b"")

    def finish(self) -> bytes:
        """The archive, padded to 512 bytes so that another one may follow."""
        self._inode = -1
        self._entry("TRAILER!!!", 0, b"")
        archive = b"".join(self._parts)
        return archive + bytes(-len(archive) % 512)


def elf64(code: bytes, base: int = 0x400000) -> bytes:
    """A static x86-64 Linux program of nothing but ``code`` (ELF-64 Object File Format, 1.5)."""
    size = 64 + 56 + len(code)
    ident = b"\x7fELF" + bytes((2, 1, 1)) + bytes(9)  # 64-bit, little endian, version 1
    header = struct.pack(
        "<16sHHIQQQIHHHHHH", ident, 2, 62, 1, base + 120, 64, 0, 0, 64, 56, 1, 0, 0, 0
    )
    segment = struct.pack("<IIQQQQQQ", 1, 5, 0, base, base, size, size, 0x1000)  # PT_LOAD, R+X
    return header + segment + code


@cache
def exit_program() -> bytes:
    """/ring1/exit, assembled from ``exit.S``."""
    import keystone

    lines = (line.split("#")[0].strip() for line in (HERE / "exit.S").read_text().splitlines())
    assembler = keystone.Ks(keystone.KS_ARCH_X86, keystone.KS_MODE_64)
    code, _ = assembler.asm("\n".join(line for line in lines if line), as_bytes=True)
    return elf64(code)


def base_cpio(busybox: bytes) -> bytes:
    """The archive every boot starts from: busybox with a link for each applet, and /init."""
    cpio = Cpio()
    for name in _DIRECTORIES:
        cpio.directory(name, 0o700 if name == "root" else 0o755)
    for name, (major, minor) in _DEVICES.items():
        cpio.device(name, major, minor)
    cpio.file("etc/fstab", _FSTAB)
    cpio.file("etc/passwd", _PASSWD)
    cpio.file("init", (HERE / "init").read_bytes(), 0o755)
    cpio.file("ring1/exit", exit_program(), 0o755)
    cpio.file("bin/busybox", busybox, 0o755)
    for applet in applets(busybox):
        if applet != "busybox":
            cpio.symlink(f"bin/{applet}", "busybox")
    return cpio.finish()


def quote(word: str) -> bytes:
    """``word`` quoted for a POSIX shell, byte for byte what the caller's command line held."""
    return b"'" + os.fsencode(word).replace(b"'", b"'\\''") + b"'"


def command_cpio(argv: Sequence[str], *, stdin: bool = False) -> bytes:
    """An archive to append to the base one: /init runs ``argv`` and ends with its status.

    ``stdin`` says that the command's input comes over COM2, as :mod:`bt.cli.stdin` writes it;
    otherwise it is empty. Raises :class:`InputError` when there is no command.
    """
    if not argv or not argv[0]:
        raise InputError("no command after --")
    cpio = Cpio()
    cpio.directory("ring1")
    cpio.file("ring1/cmd", b"exec " + b" ".join(quote(word) for word in argv) + b"\n")
    if stdin:
        cpio.fifo("ring1/stdin")
    return cpio.finish()


def terminal_cpio(rows: int, columns: int, kind: str) -> bytes:
    """An archive to append: the terminal the shell is on, which a serial line cannot tell."""
    cpio = Cpio()
    cpio.directory("ring1")
    script = b"export TERM=%s\nstty rows %d cols %d\n" % (quote(kind), rows, columns)
    cpio.file("ring1/terminal", script)
    return cpio.finish()


def root_cpio(device: str) -> bytes:
    """An archive to append: /init boots the root file system on ``device``, a block device."""
    cpio = Cpio()
    cpio.directory("ring1")
    cpio.file("ring1/root", b"device=%s\n" % quote(device) + (HERE / "root").read_bytes())
    return cpio.finish()


def net_cpio(setups: Sequence[str]) -> bytes:
    """An archive to append: /init sets up eth0, eth1, ... as ``setups`` says (guests/linux/net)."""
    cpio = Cpio()
    for folder in ("ring1", "etc"):
        cpio.directory(folder)
    cpio.file("ring1/net", b"nets=%s\n" % quote(" ".join(setups)) + (HERE / "net").read_bytes())
    cpio.file("ring1/dhcp", (HERE / "dhcp").read_bytes(), 0o755)
    return cpio.finish()


def share_cpio() -> bytes:
    """An archive to append: /init mounts the shared folders (guests/linux/share)."""
    cpio = Cpio()
    for folder in ("ring1", "mnt"):
        cpio.directory(folder)
    cpio.file("ring1/share", (HERE / "share").read_bytes())
    return cpio.finish()


def initramfs(busybox: Path, extra: Iterable[bytes] = ()) -> bytes:
    """The whole initramfs: the base archive, from the cache beside ``busybox``, and ``extra``.

    ``busybox`` is a static x86-64 busybox. The cached archive is remade when busybox or one of our
    own files is another. Raises :class:`InputError` when ``busybox`` cannot be read.
    """
    return b"".join((_cached_base(busybox), *extra))


def _version(busybox: Path) -> int:
    """A number for what the base archive is made of: our sources by content, busybox by its stat.

    Dates alone would not do: installing another version of this package can make files older.
    """
    number = 0
    for source in (HERE / "init", HERE / "exit.S", Path(__file__)):
        number = zlib.crc32(source.read_bytes(), number)
    try:
        stat = busybox.stat()
    except OSError as error:
        raise InputError(f"cannot read {busybox}: {error.strerror}") from None
    return zlib.crc32(f"{stat.st_size} {stat.st_mtime_ns}".encode(), number)


def _cached_base(busybox: Path) -> bytes:
    cached = busybox.with_name(f"initramfs-{_version(busybox):08x}.cpio")
    try:
        return cached.read_bytes()
    except OSError:
        pass  # not there yet, or not readable: make it
    try:
        binary = busybox.read_bytes()
    except OSError as error:
        raise InputError(f"cannot read {busybox}: {error.strerror}") from None
    archive = base_cpio(binary)
    temporary = cached.with_name(f"{cached.name}.{os.getpid()}")
    try:
        temporary.write_bytes(archive)
        temporary.replace(cached)  # whole or not at all: another bt may be reading it
    except OSError:
        temporary.unlink(missing_ok=True)  # a read-only cache costs time, nothing else
    return archive
