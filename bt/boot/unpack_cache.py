# SPDX-License-Identifier: GPL-2.0-or-later
"""Unpacked kernels, kept in the user's cache folder so that only the first boot pays for them.

``<cache>/ring1/vmlinux/<SHA-256 of the bzImage>.elf`` holds the kernel. So as not to hash the
bzImage at each boot, ``by-stat/<device-inode-size-mtime-ctime>`` is a symbolic link to it: no
write to a file leaves its ctime alone, so equal status means equal contents. Time stamps are coarse
(up to some 10 ms), so that holds only for a file that was not changed a moment ago: one that was
gets no link yet.

A file appears under its name by an atomic rename, so it is complete or absent. Only a host crash
right after can leave it short (an empty file, as file systems write the size after the data):
the caller's ``size``, which the bzImage itself gives, catches that. There is no checksum: it would
cost as much as the copy it protects, and whoever can write here can write to the user's other
files too. A cache that cannot be used, for whatever reason, is no error: there is just none.
"""

from __future__ import annotations

import os
import time
from pathlib import Path

from bt import usercache
from bt.boot.image import FileImage
from bt.errors import InputError

#: A file changed less than this many nanoseconds ago may change again within the same time stamp.
SETTLED_NS = 2_000_000_000
#: Kernels kept; the oldest goes first. One is about 50 MB.
KEEP = 8


class UnpackCache:
    """The cache seen from one packed kernel ``packed``, which unpacks to ``size`` bytes."""

    def __init__(self, packed: FileImage, size: int) -> None:
        self._packed = packed
        self._size = size
        self._folder = usercache.find("vmlinux")
        status = packed.status
        self._link_name = (f"{status.st_dev:x}-{status.st_ino:x}-{status.st_size:x}-"
                           f"{status.st_mtime_ns:x}-{status.st_ctime_ns:x}")
        self._digest: str | None = None

    def find(self) -> FileImage | None:
        """The unpacked kernel, or None if it is not here."""
        if self._folder is None:
            return None
        found = self._open(self._link)
        if found is None:
            found = self._open(self._file)
            if found is not None:
                self._remember()
        return found

    def store(self, data: bytes | bytearray) -> None:
        """Keep the unpacked kernel, if the cache can be written."""
        if self._folder is None or self._packed.changed():
            return
        temporary = self._folder / f".{os.getpid()}.tmp"
        try:
            self._link.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            try:
                temporary.write_bytes(data)
                temporary.replace(self._file)
            finally:
                temporary.unlink(missing_ok=True)
        except OSError:
            return
        self._remember()
        self._prune()

    @property
    def _link(self) -> Path:
        assert self._folder is not None
        return self._folder / "by-stat" / self._link_name

    @property
    def _file(self) -> Path:
        assert self._folder is not None
        if self._digest is None:
            self._digest = self._packed.sha256()
        return self._folder / f"{self._digest}.elf"

    def _open(self, path: Path) -> FileImage | None:
        try:
            found = FileImage(path, name=self._packed.name)
        except InputError:
            return None
        if found.size == self._size:
            return found
        found.close()
        return None

    def _remember(self) -> None:
        if time.time_ns() - self._packed.status.st_ctime_ns < SETTLED_NS:
            return
        try:
            self._link.unlink(missing_ok=True)
            self._link.symlink_to(Path("..") / self._file.name)
        except OSError:
            return

    def _prune(self) -> None:
        assert self._folder is not None
        try:
            kernels = sorted(self._folder.glob("*.elf"), key=lambda path: path.stat().st_mtime_ns)
            for path in kernels[:-KEEP]:
                path.unlink(missing_ok=True)
            for link in self._link.parent.iterdir():
                if not link.exists():
                    link.unlink(missing_ok=True)
        except OSError:
            return
