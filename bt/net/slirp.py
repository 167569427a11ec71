# SPDX-License-Identifier: GPL-2.0-or-later
"""libslirp, a TCP/IP stack in a library, through ctypes: the part of its interface used here.

Source: libslirp.h of package libslirp-dev, interface version 1 of SlirpConfig, which every release
of libslirp takes. One object belongs to one thread.
"""

from __future__ import annotations

import ctypes
import heapq
import ipaddress
import select
import time
from collections.abc import Callable
from ctypes import c_bool, c_char_p, c_int, c_int64, c_size_t, c_uint8, c_uint32, c_void_p

from bt.errors import InputError

LIBRARY = "libslirp.so.0"
PACKAGE = "libslirp0"

# Poll flags of its own, in and out
_IN, _OUT, _PRI, _ERR, _HUP = 1, 2, 4, 8, 16
_FLAGS = ((_IN, select.POLLIN), (_OUT, select.POLLOUT), (_PRI, select.POLLPRI),
          (_ERR, select.POLLERR), (_HUP, select.POLLHUP))
_NO_TIMEOUT = 0xFFFFFFFF

#: The guest's network; the addresses that everybody who runs a user-mode network expects.
NETWORK, MASK = "10.0.2.0", "255.255.255.0"
GATEWAY, DNS, FIRST = "10.0.2.2", "10.0.2.3", "10.0.2.15"

_SEND = ctypes.CFUNCTYPE(ctypes.c_ssize_t, c_void_p, c_size_t, c_void_p)
_TEXT = ctypes.CFUNCTYPE(None, c_char_p, c_void_p)
_CLOCK = ctypes.CFUNCTYPE(c_int64, c_void_p)
_TIMER_CALL = ctypes.CFUNCTYPE(None, c_void_p)
_TIMER_NEW = ctypes.CFUNCTYPE(c_void_p, c_void_p, c_void_p, c_void_p)
_TIMER_FREE = ctypes.CFUNCTYPE(None, c_void_p, c_void_p)
_TIMER_MOD = ctypes.CFUNCTYPE(None, c_void_p, c_int64, c_void_p)
_FD = ctypes.CFUNCTYPE(None, c_int, c_void_p)
_NOTIFY = ctypes.CFUNCTYPE(None, c_void_p)
_ADD_POLL = ctypes.CFUNCTYPE(c_int, c_int, c_int, c_void_p)
_GET_EVENTS = ctypes.CFUNCTYPE(c_int, c_int, c_void_p)


class _Callbacks(ctypes.Structure):
    _fields_ = (
        ("send_packet", _SEND), ("guest_error", _TEXT), ("clock_get_ns", _CLOCK),
        ("timer_new", _TIMER_NEW), ("timer_free", _TIMER_FREE), ("timer_mod", _TIMER_MOD),
        ("register_poll_fd", _FD), ("unregister_poll_fd", _FD), ("notify", _NOTIFY),
        ("init_completed", c_void_p), ("timer_new_opaque", c_void_p),
    )  # fmt: skip


class _Config(ctypes.Structure):
    # A struct in_addr is a u32, a struct in6_addr four of them, in the order of the network.
    _fields_ = (
        ("version", c_uint32), ("restricted", c_int),
        ("in_enabled", c_bool), ("vnetwork", c_uint32), ("vnetmask", c_uint32),
        ("vhost", c_uint32),
        ("in6_enabled", c_bool), ("vprefix_addr6", c_uint32 * 4), ("vprefix_len", c_uint8),
        ("vhost6", c_uint32 * 4),
        ("vhostname", c_char_p), ("tftp_server_name", c_char_p), ("tftp_path", c_char_p),
        ("bootfile", c_char_p),
        ("vdhcp_start", c_uint32), ("vnameserver", c_uint32), ("vnameserver6", c_uint32 * 4),
        ("vdnssearch", c_void_p), ("vdomainname", c_char_p),
        ("if_mtu", c_size_t), ("if_mru", c_size_t),
        ("disable_host_loopback", c_bool), ("enable_emu", c_bool),
        # Versions 2 to 4, not used; there in case a later library looks.
        ("outbound_addr", c_void_p), ("outbound_addr6", c_void_p), ("disable_dns", c_bool),
        ("disable_dhcp", c_bool),
    )  # fmt: skip


def _address(text: str) -> int:
    """An address as a struct in_addr holds it."""
    return int.from_bytes(ipaddress.IPv4Address(text).packed, "little")


def load() -> ctypes.CDLL:
    """The library. Raises InputError, which names the package, when it is not there."""
    try:
        library = ctypes.CDLL(LIBRARY)
    except OSError:
        raise InputError(f"--net user needs {LIBRARY}: install the package {PACKAGE}") from None
    library.slirp_new.restype = c_void_p
    library.slirp_new.argtypes = (c_void_p, c_void_p, c_void_p)
    library.slirp_cleanup.argtypes = (c_void_p,)
    library.slirp_cleanup.restype = None
    library.slirp_pollfds_fill.argtypes = (c_void_p, c_void_p, _ADD_POLL, c_void_p)
    library.slirp_pollfds_fill.restype = None
    library.slirp_pollfds_poll.argtypes = (c_void_p, c_int, _GET_EVENTS, c_void_p)
    library.slirp_pollfds_poll.restype = None
    library.slirp_input.argtypes = (c_void_p, c_char_p, c_int)
    library.slirp_input.restype = None
    library.slirp_add_hostfwd.argtypes = (c_void_p, c_int, c_uint32, c_int, c_uint32, c_int)
    return library


class Slirp:
    """One network with the guest in it. ``send(frame)`` gets Ethernet frames for the guest.

    ``host_loopback``: the guest may reach what listens on the host's 127.0.0.1, as the gateway.
    Raises InputError when the library is missing.
    """

    def __init__(self, send: Callable[[bytes], None], *, host_loopback: bool = False) -> None:
        self._library = load()
        self._timers: dict[int, Callable[[], None]] = {}
        self._due: list[tuple[int, int]] = []  # deadline in ms, timer
        self._deadline: dict[int, int] = {}
        self._next_timer = 1
        self._poll_fds: list[tuple[int, int]] = []

        def send_packet(data: int, length: int, _: int) -> int:
            send(ctypes.string_at(data, length))
            return length

        # Kept: the library has no other reference to them.
        self._callbacks = _Callbacks(
            _SEND(send_packet), _TEXT(lambda text, _: None), _CLOCK(lambda _: self._now_ns()),
            _TIMER_NEW(self._timer_new), _TIMER_FREE(self._timer_free),
            _TIMER_MOD(self._timer_mod), _FD(lambda fd, _: None), _FD(lambda fd, _: None),
            _NOTIFY(lambda _: None), None, None)
        self._add_poll = _ADD_POLL(self._poll_add)
        config = _Config(version=1, in_enabled=True, disable_host_loopback=not host_loopback)
        config.vnetwork, config.vnetmask = _address(NETWORK), _address(MASK)
        config.vhost, config.vnameserver = _address(GATEWAY), _address(DNS)
        config.vdhcp_start = _address(FIRST)
        self._slirp = self._library.slirp_new(ctypes.byref(config), ctypes.byref(self._callbacks),
                                              None)
        if not self._slirp:
            raise InputError(f"{LIBRARY} cannot be used: slirp_new failed")

    def close(self) -> None:
        """End all connections."""
        if self._slirp:
            self._library.slirp_cleanup(self._slirp)
            self._slirp = None

    def forward(self, host_port: int, guest_port: int) -> None:
        """Connections to ``host_port`` on 127.0.0.1 go to the guest. Raises InputError."""
        if self._library.slirp_add_hostfwd(self._slirp, 0, _address("127.0.0.1"), host_port,
                                           _address(FIRST), guest_port):
            raise InputError(f"cannot forward port {host_port}: it is in use, or not for us")

    def input(self, frame: bytes) -> None:
        """A frame from the guest, whole and with its checksums."""
        self._library.slirp_input(self._slirp, frame, len(frame))

    def run_once(self, wake_fd: int) -> bool:
        """Wait until something is to be done, and do it. True: ``wake_fd`` can be read."""
        timeout = c_uint32(_NO_TIMEOUT)
        self._poll_fds = []
        self._library.slirp_pollfds_fill(self._slirp, ctypes.byref(timeout), self._add_poll, None)
        poll = select.poll()
        poll.register(wake_fd, select.POLLIN)
        wanted: dict[int, int] = {}
        for fd, events in self._poll_fds:
            wanted[fd] = wanted.get(fd, 0) | events
        for fd, events in wanted.items():
            poll.register(fd, events)
        waits = [] if timeout.value == _NO_TIMEOUT else [timeout.value]
        if self._due:
            waits.append(max(0, self._due[0][0] - self._now_ns() // 1_000_000))
        ready = dict(poll.poll(min(waits) if waits else None))
        self._run_timers()

        def events_of(index: int, _: int) -> int:
            fd, events = self._poll_fds[index]
            came = ready.get(fd, 0) & (events | select.POLLERR | select.POLLHUP)
            return sum(ours for ours, theirs in _FLAGS if came & theirs)

        self._library.slirp_pollfds_poll(self._slirp, 0, _GET_EVENTS(events_of), None)
        return bool(ready.get(wake_fd))

    @staticmethod
    def _now_ns() -> int:
        # Not the machine's clock: this times the host's side of connections, in its own thread,
        # and the guest sees it no more than the clock of any other machine on its network.
        return time.monotonic_ns()

    def _poll_add(self, fd: int, flags: int, _: int) -> int:
        events = sum(theirs for ours, theirs in _FLAGS if flags & ours)
        self._poll_fds.append((fd, events))
        return len(self._poll_fds) - 1

    # Timers: a number stands for one, and is what the library takes for a pointer.

    def _timer_new(self, call: int, argument: int | None, _: int) -> int:
        number = self._next_timer
        self._next_timer += 1
        function = _TIMER_CALL(call)
        self._timers[number] = lambda: function(argument)
        return number

    def _timer_free(self, number: int, _: int) -> None:
        self._timers.pop(number, None)
        self._deadline.pop(number, None)

    def _timer_mod(self, number: int, deadline_ms: int, _: int) -> None:
        self._deadline[number] = deadline_ms
        heapq.heappush(self._due, (deadline_ms, number))

    def _run_timers(self) -> None:
        now = self._now_ns() // 1_000_000
        while self._due and self._due[0][0] <= now:
            deadline, number = heapq.heappop(self._due)
            if self._deadline.get(number) == deadline:  # or it was changed since
                del self._deadline[number]
                self._timers[number]()
