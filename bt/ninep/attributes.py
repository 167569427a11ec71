# SPDX-License-Identifier: GPL-2.0-or-later
"""What stat(2) says of a file, in the protocol's terms: qids and the answer to Tgetattr."""

from __future__ import annotations

import os
import stat
from typing import Any

from bt.ninep.wire import QID, QID_DIRECTORY, QID_FILE, QID_SYMLINK

#: Tgetattr's mask of the fields that are always there: all but birth time, generation, version.
BASIC = 0x7FF
_S = 1_000_000_000
#: readdir(3)'s DT_DIR and DT_LNK.
_DT_DIRECTORY, _DT_LINK = 4, 10


class Qids:
    """Makes qids: what tells one file from another as long as the server lives.

    The path is the inode's number. A folder with other file systems mounted in it has several
    files of the same number, so the file system's number in order of appearance is on top.
    """

    def __init__(self) -> None:
        self._systems: dict[int, int] = {}

    def _path(self, device: int, inode: int) -> int:
        number = self._systems.setdefault(device, len(self._systems))
        return (inode ^ (number & 0xFFFF) << 48) & (1 << 64) - 1

    def of(self, status: os.stat_result) -> bytes:
        """The qid of a file."""
        kind = QID_FILE
        if stat.S_ISDIR(status.st_mode):
            kind = QID_DIRECTORY
        elif stat.S_ISLNK(status.st_mode):
            kind = QID_SYMLINK
        # A client that caches drops what it has when this number changes.
        version = (status.st_mtime_ns ^ status.st_size << 8) & 0xFFFFFFFF
        return QID.pack(kind, version, self._path(status.st_dev, status.st_ino))

    def of_entry(self, directory: os.stat_result, inode: int, kind: int) -> bytes:
        """The qid of a name in ``directory``, as far as the directory itself knows it."""
        kinds = {_DT_DIRECTORY: QID_DIRECTORY, _DT_LINK: QID_SYMLINK}
        return QID.pack(kinds.get(kind, QID_FILE), 0, self._path(directory.st_dev, inode))


def linux_device(number: int) -> int:
    """A device's number as Linux has it on the wire: 12 bits of major, 20 of minor."""
    minor = os.minor(number)
    return minor & 0xFF | os.major(number) << 8 | (minor & ~0xFF) << 12


def fields(qid: bytes, status: os.stat_result) -> list[Any]:
    """The answer to Tgetattr."""
    mask64 = (1 << 64) - 1
    times = (status.st_atime_ns, status.st_mtime_ns, status.st_ctime_ns)
    return [
        BASIC, qid, status.st_mode, status.st_uid, status.st_gid, status.st_nlink,
        linux_device(status.st_rdev), status.st_size, status.st_blksize, status.st_blocks,
        *(part for time in times for part in (time // _S & mask64, time % _S)),
        0, 0, 0, 0,
    ]  # fmt: skip
