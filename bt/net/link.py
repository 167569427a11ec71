# SPDX-License-Identifier: GPL-2.0-or-later
"""A cable with something at the other end: what a network card sees of all of them.

A frame is sent and received as one message with a virtio-net header in front, by writev(2) and
readv(2) on views of the guest's memory. Nothing waits: a frame for which there is no room is asked
for again later, one that cannot be sent at all is lost, as on a cable.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from typing import Protocol

from bt.machine.timers import TimerQueue
from bt.machine.watch import GONE, READ, WRITE, HostWatcher, Watch

Views = Sequence[memoryview | bytes | bytearray]


class Card(Protocol):
    """The network card's side of the cable. Called on the vCPU's thread."""

    def frames_came(self) -> None:
        """There may be something to receive."""

    def room_came(self) -> None:
        """There may be room again for what ``send`` refused."""

    def cable_changed(self) -> None:
        """``up`` has another value."""


class Host:
    """What a link needs of the machine it runs in: ``now_ns`` is virtual time."""

    def __init__(self, watcher: HostWatcher, timers: TimerQueue,
                 now_ns: Callable[[], int]) -> None:
        self.watcher = watcher
        self.timers = timers
        self.now_ns = now_ns


class Link:
    """Base class; belongs to the vCPU's thread. ``up``: there is somebody at the other end.

    ``offloads``: frames may be sent with checksums open and TCP uncut.
    """

    offloads = True

    def __init__(self) -> None:
        self.up = False
        self._card: Card | None = None
        self._fd = -1
        self._watch: Watch | None = None
        self._wants = 0

    def attach(self, host: Host, card: Card) -> None:
        """Plug the cable into ``card``. Raises InputError when there is no such cable."""
        raise NotImplementedError

    def agree(self, checksum: bool, tcp4: bool, tcp6: bool) -> None:
        """What the guest accepts to be left open in the frames that it receives."""

    def close(self) -> None:
        """Unplug it for good."""
        self._drop()

    def send(self, views: Views) -> bool:
        """Send a frame. False: there is no room now, and ``room_came`` will be called."""
        if not self.up:
            return True
        try:
            os.writev(self._fd, views)
        except BlockingIOError:
            self._arm(WRITE)
            return False
        except (BrokenPipeError, ConnectionError):
            self._lost()
        except OSError:
            pass  # this frame is too large for the other side, or is not one: lost
        return True

    def receive(self, views: Views) -> int:
        """Receive a frame into ``views``: its length; 0 when there is none now.

        ``frames_came`` will be called when there is one. What does not fit is cut off.
        """
        if not self.up:
            return 0
        try:
            length = os.readv(self._fd, views)
        except BlockingIOError:
            self._arm(READ)
            return 0
        except OSError:
            length = 0
        if not length:
            self._lost()
        return length

    def later(self) -> None:
        """Call ``frames_came`` again soon if there are more, and let the guest run meanwhile."""
        self._arm(READ)

    # For the kinds of links -----------------------------------------------------------------------

    def _use(self, watcher: HostWatcher, fd: int) -> None:
        """Frames come from and go to ``fd`` from now on. It must not block."""
        self._fd = fd
        self._watch = watcher.watch(fd, self._event)
        self._wants = 0

    def _drop(self) -> None:
        """Close the descriptor."""
        if self._watch is not None:
            self._watch.stop()
            self._watch = None
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1
        self._set_up(False)

    def _set_up(self, up: bool) -> None:
        if self.up != up:
            self.up = up
            assert self._card is not None
            self._card.cable_changed()

    def _lost(self) -> None:
        """The other side is gone."""
        self._drop()

    def _arm(self, events: int) -> None:
        self._wants |= events
        if self._watch is not None:
            self._watch.arm(self._wants)

    def _event(self, events: int) -> None:
        came, self._wants = self._wants & events, self._wants & ~events
        if self._wants:
            self._arm(0)  # a watch fires once for all
        assert self._card is not None
        if came & WRITE or events & GONE:
            self._card.room_came()
        if came & READ or events & GONE:
            self._card.frames_came()
        if events & GONE and self.up:
            self._lost()  # with what the card had no room for
