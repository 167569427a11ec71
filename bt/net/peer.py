# SPDX-License-Identifier: GPL-2.0-or-later
"""Guest to guest: a Unix socket that two machines name alike, ``--net unix:PATH``.

Whoever comes first listens at PATH, the second connects: neither has to know which it is. The
socket is of type SEQPACKET: one message is one frame, and both sides learn when the other is gone.
The one that stays then waits at PATH for the next. A third machine waits in the listener's queue
until the cable is free.

Each side first sends a greeting, and the cable counts as plugged in when the other's has come: so
one that waits in the queue shows "no carrier" to its guest, and what is no Ring1 is found out.
After that come frames as ``link`` says. PATH can be used by its owner alone (mode 600): the other
side is another guest of the same user, as much a stranger as this one, and what its headers say is
checked by the card that receives them.
"""

from __future__ import annotations

import errno
import fcntl
import os
import socket
import stat
from contextlib import suppress

from bt.errors import InputError
from bt.machine.watch import READ, Watch
from bt.net.link import Card, Host, Link

GREETING = b"RING1NET\x01\0\0\0\0\0\0\0"
#: Room for some frames of 64 KB; the kernel has a limit of its own (net.core.wmem_max).
_SEND_BUFFER = 1 << 20
#: Until the next attempt at a cable that could not be plugged in, virtual ns.
_AGAIN_NS = 1_000_000_000
_BUSY = (errno.EAGAIN, errno.EWOULDBLOCK)


class Peer(Link):
    """The cable at ``path``. ``number``: what holds our number on it (sides.py)."""

    def __init__(self, path: str, number: socket.socket | None = None) -> None:
        super().__init__()
        self._path = path
        self._number = number
        self._host: Host | None = None
        self._listener: socket.socket | None = None
        self._listen_watch: Watch | None = None
        self._listening_at: tuple[int, int] | None = None  # device and inode of our socket's name
        self._closed = False

    def attach(self, host: Host, card: Card) -> None:
        self._host, self._card = host, card
        try:
            self._plug()
        except OSError as error:
            # Python's own complaint about a long path has no number.
            why = error.strerror or str(error)
            raise InputError(f"cannot use {self._path} as a cable: {why}") from None

    def close(self) -> None:
        self._closed = True
        super().close()
        self._stop_listening()
        if self._number is not None:
            self._number.close()

    # Who listens ----------------------------------------------------------------------------------

    def _plug(self) -> None:
        """Connect, or listen where there is nobody to connect to. Raises OSError."""
        folder = os.open(os.path.dirname(self._path) or ".", os.O_RDONLY | os.O_DIRECTORY)
        try:
            try:
                # Or two that come at the same time might both listen, one at a name that is gone.
                fcntl.flock(folder, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as error:
                if error.errno not in _BUSY:
                    raise
                self._plug_later(_AGAIN_NS // 20)
                return
            self._connect_or_listen()
        finally:
            os.close(folder)

    def _connect_or_listen(self) -> None:
        link = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_NONBLOCK)
        try:
            link.connect(self._path)
        except (FileNotFoundError, ConnectionRefusedError):
            link.close()
            self._listen()
        except BlockingIOError:  # the listener's queue is full
            link.close()
            self._plug_later(_AGAIN_NS)
        except OSError:
            link.close()
            raise
        else:
            self._begin(link)

    def _listen(self) -> None:
        with suppress(FileNotFoundError):
            if not stat.S_ISSOCK(os.lstat(self._path).st_mode):
                raise OSError(errno.EEXIST, "it is a file and no socket")
            os.unlink(self._path)  # of somebody who was killed
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_NONBLOCK)
        try:
            # A socket's name gets the mode of the socket, and that before anybody can connect.
            os.fchmod(listener.fileno(), 0o600)
            listener.bind(self._path)
            listener.listen(1)
            status = os.lstat(self._path)
        except OSError:
            listener.close()
            raise
        assert self._host is not None
        self._listening_at = (status.st_dev, status.st_ino)
        self._listener = listener
        self._listen_watch = self._host.watcher.watch(listener.fileno(), self._accept)
        self._listen_watch.arm(READ)

    def _stop_listening(self) -> None:
        if self._listener is None:
            return
        assert self._listen_watch is not None
        self._listen_watch.stop()
        self._listener.close()
        self._listener = None
        with suppress(OSError):
            status = os.lstat(self._path)
            if (status.st_dev, status.st_ino) == self._listening_at:
                os.unlink(self._path)

    def _accept(self, events: int) -> None:
        assert self._listener is not None and self._listen_watch is not None
        try:
            link, _ = self._listener.accept()
        except OSError:  # it was there and left
            self._listen_watch.arm(READ)
            return
        link.setblocking(False)
        self._begin(link)

    def _plug_later(self, delay_ns: int) -> None:
        assert self._host is not None
        self._host.timers.at(self._host.now_ns() + delay_ns, self._plug_again)

    def _plug_again(self) -> None:
        if self._closed:
            return
        try:
            self._plug()
        except OSError:
            self._plug_later(_AGAIN_NS)

    # One connection -------------------------------------------------------------------------------

    def _begin(self, link: socket.socket) -> None:
        assert self._host is not None
        link.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _SEND_BUFFER)
        with suppress(OSError):  # gone already: the watch will say so
            link.send(GREETING)
        self._use(self._host.watcher, link.detach())
        self._arm(READ)

    def _event(self, events: int) -> None:
        if self.up:
            super()._event(events)
            return
        try:
            greeting = os.read(self._fd, len(GREETING) + 1)
        except BlockingIOError:
            self._arm(READ)
            return
        except OSError:
            greeting = b""
        if greeting != GREETING:
            self._lost()
            return
        self._set_up(True)
        self._arm(READ)

    def _lost(self) -> None:
        self._drop()
        if self._closed:
            return
        if self._listener is not None:
            assert self._listen_watch is not None
            self._listen_watch.arm(READ)
        else:
            # Not at once: one that takes connections and drops them would keep us busy.
            self._plug_later(_AGAIN_NS // 20)
