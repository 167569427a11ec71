# SPDX-License-Identifier: GPL-2.0-or-later
"""A disk image on the host: what stands behind every kind of disk a guest can see.

A raw file, byte for byte the disk. Three ways to open it:

rw       the guest writes to the file; nobody else may have it open for a machine
ro       the guest cannot write; others may read too
overlay  the guest writes, but to a nameless temporary file, gone at the end; others may read too

Transfers go straight between the file and guest memory (preadv, pwritev). They are done when the
call returns: no I/O is ever in flight while the guest runs. ``flush`` returns when the host has
what was written on stable storage.
"""

from __future__ import annotations

import errno
import fcntl
import os
import stat
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

from bt.errors import InputError

SECTOR = 512
RW, RO, OVERLAY = "rw", "ro", "overlay"
MODES = (RW, RO, OVERLAY)
#: An overlay takes over whole pieces of this many bytes.
CLUSTER = 4096


class Disk:
    """One open image. Raises InputError when it cannot be used.

    ``size``: bytes, a multiple of 512 (what is left over at the end of the file is not seen).
    ``readv`` and ``writev`` take views and a byte offset, and raise OSError, also for what is
    outside the disk. ``close`` gives the file free for others.
    """

    def __init__(self, path: Path, mode: str = RW) -> None:
        assert mode in MODES
        self.path = path
        self.read_only = mode == RO
        self._fd = -1
        self._overlay: _Overlay | None = None
        try:
            # O_NONBLOCK: a FIFO would wait for its writer.
            self._fd = os.open(path, (os.O_RDWR if mode == RW else os.O_RDONLY) | os.O_CLOEXEC
                               | os.O_NONBLOCK)
        except OSError as error:
            hint = " (try ,ro or ,overlay)" if mode == RW and error.errno in (
                errno.EACCES, errno.EPERM, errno.EROFS) else ""
            raise InputError(f"cannot open disk {path}: {error.strerror}{hint}") from None
        try:
            kind = os.fstat(self._fd).st_mode
            if not (stat.S_ISREG(kind) or stat.S_ISBLK(kind)):
                raise InputError(f"{path} is no disk: neither a file nor a block device")
            self.size = os.lseek(self._fd, 0, os.SEEK_END) // SECTOR * SECTOR
            if self.size == 0:
                raise InputError(f"disk {path} is smaller than a sector")
            try:
                fcntl.flock(self._fd, (fcntl.LOCK_EX if mode == RW else fcntl.LOCK_SH)
                            | fcntl.LOCK_NB)
            except BlockingIOError:
                raise InputError(f"disk {path} is in use by another machine") from None
            except OSError as error:
                raise InputError(f"cannot lock disk {path}: {error.strerror}") from None
            if mode == OVERLAY:
                self._overlay = _Overlay(self._fd, self.size)
        except BaseException:
            self.close()
            raise

    @property
    def sectors(self) -> int:
        """Size in sectors of 512 bytes."""
        return self.size // SECTOR

    def __del__(self) -> None:
        self.close()

    def readv(self, views: Sequence[memoryview], offset: int) -> None:
        """Fill ``views``, one after the other, with what is on the disk from ``offset`` on."""
        self._check(views, offset)
        if self._overlay is not None:
            self._overlay.readv(views, offset)
        else:
            _read_all(self._fd, views, offset)

    def writev(self, views: Sequence[memoryview], offset: int) -> None:
        """Write what the views hold."""
        if self.read_only:
            raise OSError(errno.EROFS, "read-only disk")
        self._check(views, offset)
        if self._overlay is not None:
            self._overlay.writev(views, offset)
        else:
            _write_all(self._fd, views, offset)

    def flush(self) -> None:
        """What was written before is on stable storage. An overlay has nothing that must last."""
        if self._overlay is None and not self.read_only:
            os.fdatasync(self._fd)

    def close(self) -> None:
        """Release the file and the lock."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1
            if self._overlay is not None:
                self._overlay.close()

    def _check(self, views: Sequence[memoryview], offset: int) -> None:
        if offset < 0 or offset + sum(map(len, views)) > self.size:
            raise OSError(errno.EINVAL, "outside the disk")


class _Overlay:
    """What was written over ``base``, in a file without a name."""

    def __init__(self, base: int, size: int) -> None:
        self._base = base
        self._size = size
        try:
            # Owned by nobody but us: it is gone when we are, however we end.
            self._file = tempfile.TemporaryFile(buffering=0)
        except OSError as error:
            raise InputError(f"no temporary file for the overlay: {error.strerror}") from None
        self._fd = self._file.fileno()
        self._have = bytearray(-(-size // CLUSTER))  # a byte a cluster: 1 = it is in our file

    def close(self) -> None:
        self._file.close()

    def readv(self, views: Sequence[memoryview], offset: int) -> None:
        end = offset + sum(map(len, views))
        for ours, start, stop in self._runs(offset, end):
            part = _cut(views, start - offset, stop - start)
            _read_all(self._fd if ours else self._base, part, start)

    def writev(self, views: Sequence[memoryview], offset: int) -> None:
        end = offset + sum(map(len, views))
        if end == offset:
            return
        first, last = offset // CLUSTER, (end - 1) // CLUSTER
        if offset % CLUSTER:
            self._take(first)
        if end % CLUSTER:
            self._take(last)
        _write_all(self._fd, views, offset)
        self._have[first:last + 1] = b"\1" * (last + 1 - first)

    def _take(self, cluster: int) -> None:
        """Copy a cluster that is about to be written in part."""
        if not self._have[cluster]:
            start = cluster * CLUSTER
            piece = memoryview(bytearray(min(CLUSTER, self._size - start)))
            _read_all(self._base, [piece], start)
            _write_all(self._fd, [piece], start)
            self._have[cluster] = 1

    def _runs(self, offset: int, end: int) -> Iterator[tuple[bool, int, int]]:
        """(whether it is in our file, start, end) of the stretches of a range."""
        at = offset
        while at < end:
            cluster = at // CLUSTER
            ours = self._have[cluster]
            stop = self._have.find(1 - ours, cluster, -(-end // CLUSTER))
            until = end if stop < 0 else min(stop * CLUSTER, end)
            yield bool(ours), at, until
            at = until


def _cut(views: Sequence[memoryview], offset: int, length: int) -> list[memoryview]:
    """``length`` bytes from ``offset`` of what the views hold one after the other."""
    parts = []
    for view in views:
        if length <= 0:
            break
        if offset >= len(view):
            offset -= len(view)
            continue
        part = view[offset:offset + length]
        parts.append(part)
        length -= len(part)
        offset = 0
    return parts


def _read_all(fd: int, views: Sequence[memoryview], offset: int) -> None:
    _all(os.preadv, fd, views, offset)


def _write_all(fd: int, views: Sequence[memoryview], offset: int) -> None:
    _all(os.pwritev, fd, views, offset)


def _all(transfer: object, fd: int, views: Sequence[memoryview], offset: int) -> None:
    """The whole transfer, however much of it the host does at a time."""
    left = sum(map(len, views))
    while left:
        done: int = transfer(fd, views, offset)  # type: ignore[operator]
        if done <= 0:
            raise OSError(errno.EIO, "the image ends early")  # somebody cut it off meanwhile
        left -= done
        if left:
            offset += done
            views = _cut(views, done, left)
