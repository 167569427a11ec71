# SPDX-License-Identifier: GPL-2.0-or-later
"""The one folder of the host that a guest may see, and nothing outside of it.

The guest names files by walking, one name at a time. What it gets is a ``Node``: a name under
another node, up to the folder itself. Each use of a node opens the directories on the way anew,
from the folder down, each relative to the one before (openat(2)) and with O_NOFOLLOW:

- No path is ever put together, so no name can mean more than one step. Names with ``/`` or NUL,
  ``.``, ``..`` and the empty name are refused; the step up is the node's own parent, and the
  folder's is itself.
- The host never follows a symbolic link. The guest may read one and resolve it by itself, within
  its own tree.
- No descriptor of a directory is kept between two requests. A directory that somebody moves out of
  the folder is gone for the guest, and the kernel sees to it that each single step is right.

Devices, FIFOs and sockets can be seen but not opened: a file is opened as O_PATH first, which has
no effect on it, and for real through /proc/self/fd when it is known what it is.
"""

from __future__ import annotations

import errno
import os
import stat
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from bt.errors import InputError

#: Directories on the way to a file; the folder can be made deeper by a guest that may write.
MAX_DEPTH = 100
_NAME_MAX = 255

_PATH = os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC
_DIRECTORY = _PATH | os.O_DIRECTORY
#: What a guest may ask of an open file; O_DIRECT and the rest are the host's own affair.
_OPEN_FLAGS = os.O_ACCMODE | os.O_APPEND | os.O_DSYNC | os.O_SYNC | os.O_TRUNC
#: Never set on a file of the host's: a guest must not make programs that run as somebody else.
_NEVER = stat.S_ISUID | stat.S_ISGID


def fail(number: int) -> OSError:
    """The error ``number`` of errno.h, to raise."""
    return OSError(number, os.strerror(number))


class Node:
    """A place in the folder: ``name`` under ``parent``. There may or may not be a file.

    One object a place as long as somebody holds it, so that a rename is seen by all who do.
    """

    __slots__ = ("__weakref__", "children", "name", "parent")

    def __init__(self, parent: Node | None, name: bytes) -> None:
        self.parent = parent
        self.name = name
        self.children: weakref.WeakValueDictionary[bytes, Node] | None = None


class Folder:
    """The host's folder at ``path``. Methods raise OSError with what the guest is to be told.

    ``writable``: the guest may change it. Raises InputError when it is no folder one can read.
    """

    def __init__(self, path: Path, writable: bool) -> None:
        self.writable = writable
        try:
            self._root_fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except OSError as error:
            raise InputError(f"cannot share {path}: {error.strerror}") from None
        self.root = Node(None, b"")
        self._close = weakref.finalize(self, os.close, self._root_fd)

    def close(self) -> None:
        """Let go of the folder; the object is of no use afterwards."""
        self._close()

    # Places ---------------------------------------------------------------------------------------

    def child(self, parent: Node, name: bytes) -> Node:
        """The place ``name`` under ``parent``; ``..`` is the step up, which the folder has not."""
        if name == b"..":
            return parent if parent is self.root else self._parent(parent)
        if not name or name == b"." or b"/" in name or b"\0" in name:
            raise fail(errno.EINVAL)
        if len(name) > _NAME_MAX:
            raise fail(errno.ENAMETOOLONG)
        if parent.children is None:
            parent.children = weakref.WeakValueDictionary()
        node = parent.children.get(name)
        if node is None:
            node = parent.children[name] = Node(parent, name)
        return node

    def _parent(self, node: Node) -> Node:
        if node.parent is None:
            # Removed, or another file took its place.
            raise fail(errno.ENOENT)
        return node.parent

    def _forget(self, parent: Node, name: bytes) -> None:
        """There is no longer such a file: whoever holds the place holds nothing."""
        node = parent.children.pop(name, None) if parent.children is not None else None
        if node is not None:
            node.parent = None

    @contextmanager
    def _inside(self, node: Node) -> Iterator[int]:
        """A descriptor of the directory ``node``, for use with ``dir_fd``."""
        names: list[bytes] = []
        while node is not self.root:
            names.append(node.name)
            # Bounds the walk too, should a rename by somebody else have made it a circle.
            if len(names) > MAX_DEPTH:
                raise fail(errno.ELOOP)
            node = self._parent(node)
        fd = self._root_fd
        try:
            for name in reversed(names):
                below = os.open(name, _DIRECTORY, dir_fd=fd)
                if fd != self._root_fd:
                    os.close(fd)
                fd = below
            yield fd
        finally:
            if fd != self._root_fd:
                os.close(fd)

    @contextmanager
    def _at(self, node: Node) -> Iterator[int]:
        """An O_PATH descriptor of what is at ``node``, whatever it is; links are not followed."""
        if node is self.root:
            yield self._root_fd
            return
        with self._inside(self._parent(node)) as fd:
            at = os.open(node.name, _PATH, dir_fd=fd)
        try:
            yield at
        finally:
            os.close(at)

    # Reading --------------------------------------------------------------------------------------

    def status(self, node: Node) -> os.stat_result:
        """lstat(2)."""
        if node is self.root:
            return os.fstat(self._root_fd)
        with self._inside(self._parent(node)) as fd:
            return os.stat(node.name, dir_fd=fd, follow_symlinks=False)

    def read_link(self, node: Node) -> bytes:
        """Where a symbolic link leads, for the guest to resolve."""
        with self._inside(self._parent(node)) as fd:
            return os.readlink(node.name, dir_fd=fd)

    def statistics(self) -> os.statvfs_result:
        """statvfs(2) of the folder."""
        return os.fstatvfs(self._root_fd)

    def open(self, node: Node, flags: int) -> int:
        """A descriptor of the regular file or directory at ``node``; the caller closes it."""
        flags &= _OPEN_FLAGS
        if flags & (os.O_ACCMODE | os.O_TRUNC):
            self._may_write()
        with self._at(node) as at:
            return self._reopen(at, flags)

    @staticmethod
    def _reopen(at: int, flags: int) -> int:
        """What an O_PATH descriptor stands for, open for use."""
        mode = os.fstat(at).st_mode
        if stat.S_ISDIR(mode):
            if flags & os.O_ACCMODE:
                raise fail(errno.EISDIR)
            flags = os.O_RDONLY | os.O_DIRECTORY
        elif stat.S_ISLNK(mode):
            raise fail(errno.ELOOP)
        elif not stat.S_ISREG(mode):
            raise fail(errno.EACCES)
        # Our own descriptor by number: nothing that anybody renames can change what it is. Some
        # regular files of /proc block their reader: nobody may wait here.
        return os.open(f"/proc/self/fd/{at}", flags | os.O_NONBLOCK | os.O_CLOEXEC)

    # Changing -------------------------------------------------------------------------------------

    def _may_write(self) -> None:
        if not self.writable:
            raise fail(errno.EROFS)

    def create(self, parent: Node, name: bytes, flags: int, mode: int) -> tuple[Node, int]:
        """A new regular file, open; with O_EXCL left out of ``flags``, maybe an old one."""
        self._may_write()
        node = self.child(parent, name)
        if node.parent is not parent:
            raise fail(errno.EEXIST)
        exclusive = flags & os.O_EXCL
        flags &= _OPEN_FLAGS
        with self._inside(parent) as fd:
            try:
                # O_EXCL always: an existing file may be a FIFO or a device.
                new = os.open(name, flags | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC,
                              mode & 0o777, dir_fd=fd)
            except FileExistsError:
                if exclusive:
                    raise
                return node, self.open(node, flags)
        return node, new

    def make_directory(self, parent: Node, name: bytes, mode: int) -> Node:
        """mkdir(2)."""
        self._may_write()
        node = self._new(parent, name)
        depth, above = 1, parent
        while above.parent is not None and depth < MAX_DEPTH:
            depth, above = depth + 1, above.parent
        if depth >= MAX_DEPTH:
            raise fail(errno.ENAMETOOLONG)
        with self._inside(parent) as fd:
            os.mkdir(name, mode & 0o777, dir_fd=fd)
        return node

    def make_link(self, parent: Node, name: bytes, target: bytes) -> Node:
        """symlink(2): text for whoever reads the link, never followed from here."""
        self._may_write()
        node = self._new(parent, name)
        if not target or b"\0" in target:
            raise fail(errno.EINVAL)
        with self._inside(parent) as fd:
            os.symlink(target, name, dir_fd=fd)
        return node

    def _new(self, parent: Node, name: bytes) -> Node:
        """The place for a new file. Raises OSError when the name cannot be one."""
        node = self.child(parent, name)
        if node.parent is not parent:  # ".."
            raise fail(errno.EEXIST)
        return node

    def hard_link(self, parent: Node, name: bytes, node: Node) -> None:
        """linkat(2), of regular files alone."""
        self._may_write()
        self._new(parent, name)
        if not stat.S_ISREG(self.status(node).st_mode):
            raise fail(errno.EPERM)
        with self._inside(self._parent(node)) as source, self._inside(parent) as fd:
            os.link(node.name, name, src_dir_fd=source, dst_dir_fd=fd, follow_symlinks=False)

    def rename(self, old_parent: Node, old_name: bytes, new_parent: Node, new_name: bytes) -> None:
        """renameat(2); nodes at the old place are at the new one afterwards."""
        self._may_write()
        node = self._new(old_parent, old_name)
        self._new(new_parent, new_name)
        with self._inside(old_parent) as old, self._inside(new_parent) as new:
            os.rename(old_name, new_name, src_dir_fd=old, dst_dir_fd=new)
        if (old_parent, old_name) == (new_parent, new_name):
            return
        self._forget(new_parent, new_name)
        assert old_parent.children is not None and new_parent.children is not None
        old_parent.children.pop(old_name, None)
        node.parent, node.name = new_parent, new_name
        new_parent.children[new_name] = node

    def place(self, node: Node) -> tuple[Node, bytes]:
        """Where ``node`` is now: the directory and the name in it. The folder itself is nowhere."""
        if node is self.root:
            raise fail(errno.EBUSY)
        return self._parent(node), node.name

    def remove(self, parent: Node, name: bytes, directory: bool) -> None:
        """unlinkat(2)."""
        self._may_write()
        self._new(parent, name)
        with self._inside(parent) as fd:
            if directory:
                os.rmdir(name, dir_fd=fd)
            else:
                os.unlink(name, dir_fd=fd)
        self._forget(parent, name)

    def change_mode(self, node: Node, mode: int) -> None:
        """chmod(2), without set-user-ID and set-group-ID."""
        self._may_write()
        with self._at(node) as at:
            if stat.S_ISLNK(os.fstat(at).st_mode):
                raise fail(errno.EOPNOTSUPP)
            os.chmod(f"/proc/self/fd/{at}", mode & 0o7777 & ~_NEVER)

    def change_size(self, node: Node, size: int) -> None:
        """truncate(2) of a regular file."""
        fd = self.open(node, os.O_WRONLY)
        try:
            os.ftruncate(fd, size)
        finally:
            os.close(fd)

    def change_times(self, node: Node, times: tuple[int, int] | None) -> None:
        """utimensat(2), of a link itself too: access and modification in ns; None for now."""
        self._may_write()
        if node is self.root:
            os.utime(self._root_fd, ns=times) if times else os.utime(self._root_fd)
            return
        with self._inside(self._parent(node)) as fd:
            if times:
                os.utime(node.name, ns=times, dir_fd=fd, follow_symlinks=False)
            else:
                os.utime(node.name, dir_fd=fd, follow_symlinks=False)
