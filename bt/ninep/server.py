# SPDX-License-Identifier: GPL-2.0-or-later
"""The answers: one 9P2000.L session over a Folder.

``Server.answer(request, room)`` is all of the interface. It never raises: what a guest does wrong
is answered with Rlerror and an errno, and so is every error of the host. Requests are answered one
by one, in order, so Tflush finds nothing to flush.

A *fid* is the guest's number for a place in the folder, and for an open file when it has opened
it. Both are limited, and so is the size of a message; nothing else is kept for a guest.

Left out, with "not supported": extended attributes, device nodes, FIFOs and sockets, authentication
(there is one user, who runs the VMM: its rights are the guest's), and 9P2000's own open, create and
stat, which Linux uses in other dialects only. Locks are granted without looking: one guest is one
client, which knows of its own.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable
from typing import Any

from bt.ninep import attributes, wire
from bt.ninep.folder import Folder, Node, fail

#: Largest message. Linux's virtio transport cannot do more than 500 KB.
MAX_MESSAGE = 512 * 1024
MIN_MESSAGE = 4096
MAX_FIDS = 16384
MAX_OPEN = 256
_MAX_OFFSET = (1 << 63) - 1
_S = 1_000_000_000

# Tsetattr's mask
_MODE, _UID, _GID, _SIZE, _ATIME, _MTIME = 1, 2, 4, 8, 16, 32
_ATIME_SET, _MTIME_SET = 128, 256
_UNLINK_DIRECTORY = 0x200  # AT_REMOVEDIR
_UNLOCKED = 2  # F_UNLCK of 9P2000.L
_LOCK_SUCCESS = 0
_V9FS_MAGIC = 0x01021997
_HEAD = wire.HEADER.size
_DENT_OVERHEAD = wire.QID.size + 8 + 1 + 2


class _Fid:
    """A place, and the open file there if ``fd`` is not -1."""

    __slots__ = ("fd", "node")

    def __init__(self, node: Node, fd: int = -1) -> None:
        self.node = node
        self.fd = fd


class Server:
    """A session over ``folder``. ``close`` drops the open files."""

    def __init__(self, folder: Folder) -> None:
        self._folder = folder
        self._fids: dict[int, _Fid] = {}
        self._open = 0
        self._msize = MAX_MESSAGE
        self._qids = attributes.Qids()
        self._room = 0  # bytes that the answer in the making may have
        self._methods: dict[int, Callable[..., list[Any]]] = {
            number: getattr(self, f"_{message.name}") for number, message in wire.MESSAGES.items()
        }

    def close(self) -> None:
        """Drop all fids and open files: a new session may begin."""
        for fid in self._fids.values():
            if fid.fd >= 0:
                os.close(fid.fd)
        self._fids.clear()
        self._open = 0

    def answer(self, request: bytes, room: int) -> bytes:
        """The answer to one message, at most ``room`` bytes; room for an Rlerror (11) is needed.

        Empty when there is nothing to answer: no whole header, or no room.
        """
        if len(request) < _HEAD or room < _HEAD + 4:
            return b""
        size, number, tag = wire.HEADER.unpack_from(request)
        self._room = min(room, self._msize)
        try:
            if size != len(request):
                raise wire.Malformed("its size is not its size")
            if number not in self._methods:
                raise fail(errno.EOPNOTSUPP)
            message = wire.MESSAGES[number]
            fields = self._methods[number](*wire.unpack(message.request, request[_HEAD:]))
            reply = wire.message(number + 1, tag, wire.pack(message.reply, fields))
            if len(reply) > room:
                raise fail(errno.EMSGSIZE)
            return reply
        except wire.Malformed:
            code = errno.EPROTO
        except (OverflowError, ValueError):
            code = errno.EINVAL  # a number that the host's interface cannot take
        except OSError as error:
            code = error.errno or errno.EIO
        return wire.message(wire.RLERROR, tag, code.to_bytes(4, "little"))

    # Fids -----------------------------------------------------------------------------------------

    def _fid(self, number: int) -> _Fid:
        fid = self._fids.get(number)
        if fid is None:
            raise fail(errno.EBADF)
        return fid

    def _node(self, number: int) -> Node:
        return self._fid(number).node

    def _opened(self, number: int) -> int:
        fd = self._fid(number).fd
        if fd < 0:
            raise fail(errno.EBADF)
        return fd

    def _add(self, number: int, node: Node) -> None:
        if number == wire.NO_FID or number in self._fids:
            raise fail(errno.EBADF)
        if len(self._fids) >= MAX_FIDS:
            raise fail(errno.ENFILE)
        self._fids[number] = _Fid(node)

    def _may_open(self, fid: _Fid) -> None:
        if fid.fd >= 0:
            raise fail(errno.EBUSY)
        if self._open >= MAX_OPEN:
            raise fail(errno.EMFILE)

    def _set_open(self, fid: _Fid, fd: int) -> list[Any]:
        try:
            qid = self._qids.of(os.fstat(fd))
        except BaseException:
            os.close(fd)
            raise
        fid.fd = fd
        self._open += 1
        return [qid, 0]  # iounit 0: as much as a message takes

    def _drop(self, number: int) -> _Fid:
        fid = self._fid(number)
        del self._fids[number]
        if fid.fd >= 0:
            self._open -= 1
            os.close(fid.fd)
        return fid

    def _qid(self, node: Node) -> bytes:
        return self._qids.of(self._folder.status(node))

    # The session ----------------------------------------------------------------------------------

    def _version(self, msize: int, version: bytes) -> list[Any]:
        self.close()
        if msize < MIN_MESSAGE:
            raise fail(errno.EMSGSIZE)
        self._msize = min(msize, MAX_MESSAGE)
        return [self._msize, wire.VERSION if version == wire.VERSION else b"unknown"]

    def _auth(self, *_: Any) -> list[Any]:
        raise fail(errno.EOPNOTSUPP)

    def _attach(self, fid: int, afid: int, uname: bytes, aname: bytes, n_uname: int) -> list[Any]:
        if afid != wire.NO_FID:
            raise fail(errno.EBADF)
        if aname not in (b"", b"/"):
            raise fail(errno.ENOENT)
        qid = self._qid(self._folder.root)
        self._add(fid, self._folder.root)
        return [qid]

    def _flush(self, tag: int) -> list[Any]:
        return []

    def _walk(self, number: int, new: int, names: list[bytes]) -> list[Any]:
        fid = self._fid(number)
        if new != number and (new == wire.NO_FID or new in self._fids):
            raise fail(errno.EBADF)
        node, qids = fid.node, []
        for name in names:
            try:
                node = self._folder.child(node, name)
                qids.append(self._qid(node))
            except OSError:
                # A walk that gets somewhere answers how far; only one that fails at once is an
                # error (walk(5)).
                if not qids:
                    raise
                return [qids]
        if new == number:
            if fid.fd >= 0:
                raise fail(errno.EBUSY)
            fid.node = node
        else:
            self._add(new, node)
        return [qids]

    def _clunk(self, number: int) -> list[Any]:
        self._drop(number)
        return []

    def _remove(self, number: int) -> list[Any]:
        # The fid is gone in any case (remove(5)).
        node = self._drop(number).node
        parent, name = self._folder.place(node)
        self._folder.remove(parent, name, stat.S_ISDIR(self._folder.status(node).st_mode))
        return []

    # Reading --------------------------------------------------------------------------------------

    def _statfs(self, number: int) -> list[Any]:
        self._fid(number)
        of = self._folder.statistics()
        return [_V9FS_MAGIC, of.f_frsize & 0xFFFFFFFF, of.f_blocks, of.f_bfree, of.f_bavail,
                of.f_files, of.f_ffree, of.f_fsid & (1 << 64) - 1, min(of.f_namemax, 255)]

    def _getattr(self, number: int, mask: int) -> list[Any]:
        fid = self._fid(number)
        # An open file may have lost its name meanwhile.
        status = os.fstat(fid.fd) if fid.fd >= 0 else self._folder.status(fid.node)
        return attributes.fields(self._qids.of(status), status)

    def _readlink(self, number: int) -> list[Any]:
        return [self._folder.read_link(self._node(number))]

    def _lopen(self, number: int, flags: int) -> list[Any]:
        fid = self._fid(number)
        self._may_open(fid)
        return self._set_open(fid, self._folder.open(fid.node, flags))

    def _read(self, number: int, offset: int, count: int) -> list[Any]:
        fd = self._opened(number)
        if offset > _MAX_OFFSET:
            raise fail(errno.EINVAL)
        return [os.pread(fd, min(count, self._room - wire.DATA_OVERHEAD), offset)]

    def _readdir(self, number: int, offset: int, count: int) -> list[Any]:
        from bt.ninep import dents  # ctypes: only when a guest lists a directory

        fd = self._opened(number)
        if offset > _MAX_OFFSET:
            raise fail(errno.EINVAL)
        status = os.fstat(fd)
        if not stat.S_ISDIR(status.st_mode):
            raise fail(errno.ENOTDIR)
        room = min(count, self._room - wire.DATA_OVERHEAD)
        at_root = self._fid(number).node is self._folder.root
        parts, taken = [], 0
        for entry in dents.entries(fd, offset, room):
            length = _DENT_OVERHEAD + len(entry.name)
            if taken + length > room:
                break
            taken += length
            # What is above the folder is not the guest's business, not even its number.
            inode = status.st_ino if at_root and entry.name == b".." else entry.inode
            qid = self._qids.of_entry(status, inode, entry.kind)
            parts.append(wire.pack("qQBs", (qid, entry.next & (1 << 64) - 1, entry.kind,
                                            entry.name)))
        return [b"".join(parts)]

    def _xattrwalk(self, number: int, new: int, name: bytes) -> list[Any]:
        self._fid(number)
        raise fail(errno.EOPNOTSUPP)

    def _xattrcreate(self, number: int, *_: Any) -> list[Any]:
        self._fid(number)
        raise fail(errno.EOPNOTSUPP)

    def _lock(self, number: int, *_: Any) -> list[Any]:
        self._opened(number)
        return [_LOCK_SUCCESS]

    def _getlock(self, number: int, kind: int, start: int, length: int, process: int,
                 client: bytes) -> list[Any]:
        self._opened(number)
        return [_UNLOCKED, start, length, process, client]

    # Changing -------------------------------------------------------------------------------------

    def _lcreate(self, number: int, name: bytes, flags: int, mode: int, gid: int) -> list[Any]:
        fid = self._fid(number)
        self._may_open(fid)
        node, fd = self._folder.create(fid.node, name, flags, mode)
        answer = self._set_open(fid, fd)
        fid.node = node  # the directory's fid is the new file's from now on
        return answer

    def _write(self, number: int, offset: int, data: bytes) -> list[Any]:
        fd = self._opened(number)
        if offset > _MAX_OFFSET:
            raise fail(errno.EINVAL)
        return [os.pwrite(fd, data, offset)]

    def _fsync(self, number: int, data_only: int) -> list[Any]:
        fd = self._opened(number)
        (os.fdatasync if data_only else os.fsync)(fd)
        return []

    def _symlink(self, number: int, name: bytes, target: bytes, gid: int) -> list[Any]:
        return [self._qid(self._folder.make_link(self._node(number), name, target))]

    def _mknod(self, number: int, name: bytes, mode: int, major: int, minor: int,
               gid: int) -> list[Any]:
        node = self._node(number)
        if stat.S_IFMT(mode) not in (0, stat.S_IFREG):
            raise fail(errno.EPERM)
        made, fd = self._folder.create(node, name, os.O_EXCL | os.O_RDONLY, mode)
        os.close(fd)
        return [self._qid(made)]

    def _mkdir(self, number: int, name: bytes, mode: int, gid: int) -> list[Any]:
        return [self._qid(self._folder.make_directory(self._node(number), name, mode))]

    def _link(self, directory: int, number: int, name: bytes) -> list[Any]:
        self._folder.hard_link(self._node(directory), name, self._node(number))
        return []

    def _rename(self, number: int, directory: int, name: bytes) -> list[Any]:
        parent, old = self._folder.place(self._node(number))
        self._folder.rename(parent, old, self._node(directory), name)
        return []

    def _renameat(self, old: int, old_name: bytes, new: int, new_name: bytes) -> list[Any]:
        self._folder.rename(self._node(old), old_name, self._node(new), new_name)
        return []

    def _unlinkat(self, number: int, name: bytes, flags: int) -> list[Any]:
        self._folder.remove(self._node(number), name, bool(flags & _UNLINK_DIRECTORY))
        return []

    def _setattr(self, number: int, valid: int, mode: int, uid: int, gid: int, size: int,
                 atime_s: int, atime_ns: int, mtime_s: int, mtime_ns: int) -> list[Any]:
        fid = self._fid(number)
        folder, node = self._folder, fid.node
        if not folder.writable:
            raise fail(errno.EROFS)
        status = os.fstat(fid.fd) if fid.fd >= 0 else folder.status(node)
        # All files belong to whoever runs the VMM; saying so again does no harm.
        if valid & _UID and uid != status.st_uid or valid & _GID and gid != status.st_gid:
            raise fail(errno.EPERM)
        if valid & _MODE:
            folder.change_mode(node, mode)
        if valid & _SIZE:
            if size > _MAX_OFFSET:
                raise fail(errno.EFBIG)
            folder.change_size(node, size)
        if valid & (_ATIME | _MTIME):
            accessed_now = valid & _ATIME and not valid & _ATIME_SET
            modified_now = valid & _MTIME and not valid & _MTIME_SET
            if accessed_now or modified_now:
                # By the host's clock, as it stamps files: let it, and see what it was.
                folder.change_times(node, None)
                stamped = folder.status(node)
            accessed = (stamped.st_atime_ns if accessed_now else
                        self._time(valid & _ATIME, atime_s, atime_ns, status.st_atime_ns))
            modified = (stamped.st_mtime_ns if modified_now else
                        self._time(valid & _MTIME, mtime_s, mtime_ns, status.st_mtime_ns))
            folder.change_times(node, (accessed, modified))
        return []

    @staticmethod
    def _time(change: int, seconds: int, nanoseconds: int, old: int) -> int:
        if not change:
            return old
        if nanoseconds >= _S:
            raise fail(errno.EINVAL)
        signed = seconds - (1 << 64) if seconds >> 63 else seconds
        return signed * _S + nanoseconds
