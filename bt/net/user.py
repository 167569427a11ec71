# SPDX-License-Identifier: GPL-2.0-or-later
"""User-mode networking, ``--net user``: the guest's connections become connections of this process.

It needs no rights and gives the guest an address by DHCP, a gateway and a name server. The stack
(``slirp``) runs in a thread of its own, at the other end of a pair of sockets: to the network card
that is one more cable, and the thread touches nothing of the machine.

The stack wants whole packets, so what the guest left open (checksums, TCP to cut) is done here.
"""

from __future__ import annotations

import os
import socket
import threading
from contextlib import suppress

from bt.net import header, offload
from bt.net.link import Card, Host, Link

_BUFFER = 1 << 20
#: Frames taken from the guest before its connections get a look again.
_BATCH = 64


class User(Link):
    """``forwards``: (port on the host's 127.0.0.1, port of the guest) pairs, TCP.

    ``host_loopback``: see slirp.Slirp.
    """

    def __init__(self, forwards: list[tuple[int, int]] | None = None, *,
                 host_loopback: bool = False) -> None:
        super().__init__()
        self._forwards = forwards or []
        self._host_loopback = host_loopback
        self._thread: threading.Thread | None = None
        self._valid = header.PLAIN

    def attach(self, host: Host, card: Card) -> None:
        from bt.net.slirp import Slirp  # ctypes

        self._card = card
        ours, self._theirs = socket.socketpair(
            socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_NONBLOCK)
        for end in (ours, self._theirs):
            end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _BUFFER)
        # Before the thread starts, so that what the user got wrong is known at once.
        self._slirp = Slirp(self._to_guest, host_loopback=self._host_loopback)
        for host_port, guest_port in self._forwards:
            self._slirp.forward(host_port, guest_port)
        self._use(host.watcher, ours.detach())
        self._set_up(True)
        self.later()
        self._thread = threading.Thread(target=self._run, name="user-network", daemon=True)
        self._thread.start()

    def agree(self, checksum: bool, tcp4: bool, tcp6: bool) -> None:
        # The stack makes right checksums; a guest that may be told so need not look.
        self._valid = header.VALID if checksum else header.PLAIN

    def close(self) -> None:
        super().close()  # the thread sees the end of its socket
        if self._thread is not None:
            self._thread.join()
            self._thread = None

    # In the thread --------------------------------------------------------------------------------

    def _run(self) -> None:
        try:
            while not self._slirp.run_once(self._theirs.fileno()) or self._take():
                pass
        finally:
            self._slirp.close()
            self._theirs.close()

    def _to_guest(self, frame: bytes) -> None:
        # A guest that does not take its frames loses them; TCP sends them again.
        with suppress(OSError):
            os.writev(self._theirs.fileno(), (self._valid, frame))

    def _take(self) -> bool:
        """Frames from the guest, to the stack. False: the machine is gone."""
        for _ in range(_BATCH):
            try:
                data = self._theirs.recv(header.MAX_FRAME + 1)
            except BlockingIOError:
                return True
            except OSError:
                return False
            if not data:
                return False
            if not header.MIN_FRAME <= len(data) <= header.MAX_FRAME:
                continue
            told = header.parse(data)
            frame = bytearray(memoryview(data)[header.SIZE:])
            if told.is_sound(len(frame)):
                for packet in offload.plain_frames(frame, told):
                    self._slirp.input(bytes(packet))
        return True
