# SPDX-License-Identifier: GPL-2.0-or-later
"""The domain's console: the shared ring (<xen/io/console.h>) behind hvc0, and console_io (18).

The indices in the ring count bytes and never wrap to the ring's size; the guest may write anything
there. A distance larger than the ring is nonsense, and the rings are then left alone until it makes
sense again.
"""

from __future__ import annotations

import struct
from collections.abc import Callable

from bt.machine.ram import Ram
from bt.xen import abi, ring
from bt.xen.guest import GuestMemory, XenError

#: Bytes of one console_io write. Xen has no limit, but the work of one hypercall must have one.
MAX_RAW = 1 << 20
#: Bytes of input kept for a guest that does not read.
MAX_INPUT = 1 << 16
_STEP = 4096


class Console:
    """Output goes to ``on_output`` when the guest sends on the console's channel.

    The owner sets ``raise_event``, which sends on it to the guest.
    """

    def __init__(self, ram: Ram, page: int, guest: GuestMemory,
                 on_output: Callable[[bytes], None], on_raw: Callable[[bytes], None]) -> None:
        self._view = ram.view
        self._page = page
        self._guest = guest
        self._on_output = on_output
        self._on_raw = on_raw
        self._input = bytearray()
        self.raise_event: Callable[[], None] = lambda: None

    def feed(self, data: bytes) -> int:
        """Input for the guest; gives how many bytes were taken (the rest: try again later)."""
        taken = min(len(data), MAX_INPUT - len(self._input))
        self._input += data[:taken]
        if self._fill():
            self.raise_event()
        return taken

    @property
    def pending_input(self) -> int:
        """Bytes that the guest has not read yet, in the ring or before it."""
        used = self._index(abi.XENCONS_IN_PROD) - self._index(abi.XENCONS_IN_CONS) & 0xFFFF_FFFF
        return len(self._input) + (used if used <= abi.XENCONS_IN_SIZE else 0)

    def notified(self) -> None:
        """The guest has written output, or has read input."""
        was_full = self._drain()
        if self._fill() or was_full:
            self.raise_event()

    def _index(self, offset: int) -> int:
        return struct.unpack_from("<I", self._view, self._page + offset)[0]

    def _set_index(self, offset: int, value: int) -> None:
        struct.pack_into("<I", self._view, self._page + offset, value & 0xFFFF_FFFF)

    def _drain(self) -> bool:
        """Take all output. True if the ring was full: its writer may be waiting for room."""
        consumed, produced = self._index(abi.XENCONS_OUT_CONS), self._index(abi.XENCONS_OUT_PROD)
        used = produced - consumed & 0xFFFF_FFFF
        if not 0 < used <= abi.XENCONS_OUT_SIZE:
            return False
        data = ring.read(self._view, self._page + abi.XENCONS_OUT, abi.XENCONS_OUT_SIZE, consumed,
                         used)
        self._set_index(abi.XENCONS_OUT_CONS, produced)
        self._on_output(data)
        return used == abi.XENCONS_OUT_SIZE

    def _fill(self) -> bool:
        """Move waiting input into the ring as far as it has room. True if anything moved."""
        if not self._input:
            return False
        consumed, produced = self._index(abi.XENCONS_IN_CONS), self._index(abi.XENCONS_IN_PROD)
        used = produced - consumed & 0xFFFF_FFFF
        if used >= abi.XENCONS_IN_SIZE:
            return False
        data = self._input[:abi.XENCONS_IN_SIZE - used]
        del self._input[:len(data)]
        ring.write(self._view, self._page + abi.XENCONS_IN, abi.XENCONS_IN_SIZE, produced, data)
        self._set_index(abi.XENCONS_IN_PROD, produced + len(data))
        return True

    def console_io(self, operation: int, count: int, pointer: int, *_: int) -> int:
        """Hypercall 18. There is nothing to read: the result is 0 bytes."""
        if operation == abi.CONSOLEIO_read:
            return 0
        if operation != abi.CONSOLEIO_write:
            raise XenError(abi.XEN_ENOSYS)
        count &= 0xFFFF_FFFF
        if count > MAX_RAW:
            raise XenError(abi.XEN_E2BIG)
        for done in range(0, count, _STEP):
            self._on_raw(self._guest.read(pointer + done, min(_STEP, count - done)))
        return 0
