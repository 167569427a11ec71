# SPDX-License-Identifier: GPL-2.0-or-later
"""Reading a kernel or an initrd: random access to a file or to bytes, and the errors of both.

Files are read with pread() straight into guest RAM, never mapped: a file that shrinks while it is
read is then a clear error and not a SIGBUS, and a kernel of 50 MB costs no second copy.
"""

from __future__ import annotations

import os
import stat
from pathlib import Path
from typing import Self

from bt.errors import InputError


class Image:
    """``size`` bytes that can be read at any offset. Use it as a context manager: it holds a file.

    ``name`` is what error messages call it.
    """

    name: str
    size: int

    def read_into(self, offset: int, target: memoryview) -> None:
        """Fill ``target`` from ``offset``. Raises InputError if the image ends before."""
        raise NotImplementedError

    def read(self, offset: int, length: int) -> bytes:
        """``length`` bytes at ``offset``. Raises InputError if the image ends before."""
        self.check(offset, length)
        data = bytearray(length)
        self.read_into(offset, memoryview(data))
        return bytes(data)

    def head(self, length: int) -> bytes:
        """The first ``length`` bytes, or fewer if the image is shorter."""
        return self.read(0, min(length, self.size))

    def check(self, offset: int, length: int) -> None:
        """Raise InputError unless ``offset .. offset+length`` lies in the image."""
        if offset < 0 or length < 0 or offset + length > self.size:
            raise InputError(f"{self.name}: cut short: {length} bytes expected at offset "
                             f"{offset:#x}, but the file has {self.size}")

    def close(self) -> None:
        """Give the file back."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class BytesImage(Image):
    """An image that lies in memory already."""

    def __init__(self, name: str, data: bytes | bytearray | memoryview) -> None:
        self.name = name
        self.data = memoryview(data).cast("B")
        self.size = len(self.data)

    def read_into(self, offset: int, target: memoryview) -> None:
        self.check(offset, len(target))
        target[:] = self.data[offset:offset + len(target)]


class FileImage(Image):
    """A regular file, opened for reading. Raises InputError if it is not one, or not readable."""

    def __init__(self, path: Path, name: str | None = None) -> None:
        self.name = name or _printable(str(path))
        self._fd = -1
        try:
            # O_NONBLOCK: opening a FIFO must not wait for a writer before we can refuse it.
            self._fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
            self.status = os.fstat(self._fd)
        except (OSError, ValueError) as err:
            raise InputError(f"{self.name}: cannot open: {_reason(err)}") from None
        if not stat.S_ISREG(self.status.st_mode):
            self.close()
            what = "a directory" if stat.S_ISDIR(self.status.st_mode) else "a special file"
            raise InputError(f"{self.name}: is {what}, not a file")
        self.size = self.status.st_size

    def read_into(self, offset: int, target: memoryview) -> None:
        self.check(offset, len(target))
        done = 0
        while done < len(target):       # one preadv() moves 2 GiB at most
            try:
                count = os.preadv(self._fd, [target[done:]], offset + done)
            except OSError as err:
                raise InputError(f"{self.name}: cannot read: {_reason(err)}") from None
            if count == 0:
                raise InputError(f"{self.name}: became shorter while it was read")
            done += count

    def changed(self) -> bool:
        """True if somebody wrote to the file since it was opened."""
        return os.fstat(self._fd).st_ctime_ns != self.status.st_ctime_ns

    def sha256(self) -> str:
        """Hexadecimal digest of the whole file. Raises InputError if it cannot be read."""
        import hashlib  # here: it costs 6 ms that a boot from the cache need not pay

        digest = hashlib.sha256()
        block = memoryview(bytearray(min(self.size, 1 << 20)))
        for offset in range(0, self.size, 1 << 20):
            part = block[:min(len(block), self.size - offset)]
            self.read_into(offset, part)
            digest.update(part)
        return digest.hexdigest()

    def close(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def __del__(self) -> None:
        self.close()


def _reason(err: Exception) -> str:
    return getattr(err, "strerror", None) or str(err)


def _printable(text: str) -> str:
    """A file name that cannot break the one line of a message."""
    return "".join(c if c.isprintable() else "?" for c in text)
