# SPDX-License-Identifier: GPL-2.0-or-later
"""Reading a directory from any position, as Treaddir does: getdents64(2).

Python's scandir cannot start in the middle, and keeping the whole list for each open directory
would let a guest fill the host's memory. The kernel's own positions (``d_off``) go to the guest and
come back from it; a wrong one reads another part of the same directory, or nothing.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Iterator
from dataclasses import dataclass
from struct import Struct

_HEAD = Struct("<QqHB")  # d_ino, d_off, d_reclen, d_type
_MAX = 64 * 1024
_libc = ctypes.CDLL(None, use_errno=True)
_libc.getdents64.restype = ctypes.c_ssize_t
_libc.getdents64.argtypes = (ctypes.c_int, ctypes.c_void_p, ctypes.c_size_t)


@dataclass(frozen=True)
class Entry:
    """One name of a directory. ``kind``: DT_* of readdir(3). ``next``: where the one after it is.
    """

    name: bytes
    inode: int
    kind: int
    next: int


def entries(fd: int, position: int, about: int) -> Iterator[Entry]:
    """Some entries of the directory open as ``fd`` from ``position``; none: that was the end.

    ``about``: bytes of the kernel's records to read at most. Raises OSError.
    """
    os.lseek(fd, position, os.SEEK_SET)
    # One record has a name of up to 255 bytes: less room than that would be an error.
    buffer = ctypes.create_string_buffer(min(max(about, 1024), _MAX))
    length = _libc.getdents64(fd, buffer, len(buffer))
    if length < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    data = buffer.raw[:length]
    at = 0
    while at < length:
        inode, following, size, kind = _HEAD.unpack_from(data, at)
        name = data[at + _HEAD.size:at + size]
        yield Entry(name[:name.index(0)], inode, kind, following)
        at += size
