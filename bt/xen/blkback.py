# SPDX-License-Identifier: GPL-2.0-or-later
"""The backend of a paravirtual disk: <xen/io/blkif.h>, for the kernel's own xen-blkfront.

Front and back end agree through nodes in xenstore: each has a state, and the frontend says where
its ring is (a grant) and how to call (an event channel). Then requests lie in the ring, each with
up to 11 grants of pages to read or write, and each is done before the next is looked at.

The ring, the grant table and the store's nodes are the guest's to write at any time. A grant is
looked up each time it is used, must be of a page of the guest's own, and a page that the guest uses
as a page table or descriptor table is not written to. Ring indexes that make no sense end the
connection.
"""

from __future__ import annotations

from collections.abc import Callable
from struct import Struct
from typing import TYPE_CHECKING, Protocol

from bt.devices.disk import SECTOR, Disk
from bt.machine.dma import Dma
from bt.xen import abi
from bt.xen.store import BACKEND_ID, DOMAIN_ID, HOME, Store

if TYPE_CHECKING:
    from bt.xen.events import Events
    from bt.xen.grants import Grants

#: Number of a virtual disk: block device major 202 (xvd), 16 minors a disk.
_FIRST = 202 << 8
_MINORS = 16
MAX_DISKS = 16
_SLOT = abi.BLKIF_REQUEST.size
#: Slots of a one-page ring: a power of two.
RING_SLOTS = 1 << ((abi.PAGE_SIZE - abi.BLKIF_RING) // _SLOT).bit_length() - 1
_U32 = Struct("<I")
_INDEX = (1 << 32) - 1
#: Type of a frame that the guest has mapped writable (PGT_WRITABLE in xen_pages.pxi).
_WRITABLE = 6


class FrameCore(Protocol):
    """What the compiled core says of a frame."""

    def xen_frame(self, mfn: int, /) -> tuple[int, int] | None:
        """(type, references); type 6 is writable, 0 is none."""
        ...


class BlockBackend:
    """``disk`` as virtual disk ``number`` of the domain (xvda is 0).

    ``report(text)`` is told when the frontend breaks a rule.
    """

    def __init__(self, number: int, disk: Disk, *, store: Store, events: Events, grants: Grants,
                 dma: Dma, core: FrameCore, report: Callable[[str], None]) -> None:
        assert 0 <= number < MAX_DISKS
        handle = _FIRST + _MINORS * number
        self._disk = disk
        self._store = store
        self._events = events
        self._grants = grants
        self._dma = dma
        self._core = core
        self._report = report
        self._front = f"{HOME}/device/vbd/{handle}"
        self._back = f"/local/domain/{BACKEND_ID}/backend/vbd/{DOMAIN_ID}/{handle}"
        self._ring: int | None = None           # grant of the ring's page; None: not connected
        self._send: Callable[[], None] = lambda: None
        self._taken = 0                         # requests looked at, modulo 2^32
        store.put(self._front, guest_owned=True)
        for name, value in (("backend", self._back), ("backend-id", str(BACKEND_ID)),
                            ("virtual-device", str(handle)), ("device-type", "disk"),
                            ("state", str(abi.XenbusStateInitialising))):
            store.put(f"{self._front}/{name}", value, guest_owned=True)
        for name, value in (
                ("frontend", self._front), ("frontend-id", str(DOMAIN_ID)), ("online", "1"),
                ("removable", "0"), ("mode", "r" if disk.read_only else "w"), ("type", "phy"),
                ("feature-flush-cache", "1"), ("sector-size", str(SECTOR)),
                ("sectors", str(disk.sectors)), ("info", "4" if disk.read_only else "0")):
            store.put(f"{self._back}/{name}", value)
        self._set_state(abi.XenbusStateInitWait)
        store.observe(f"{self._front}/state", self._frontend_moved)

    # The handshake ------------------------------------------------------------------------------

    def _set_state(self, state: int) -> None:
        self._store.put(f"{self._back}/state", str(state))

    def _number(self, name: str) -> int:
        """A number that the frontend wrote; -1 for anything else."""
        value = self._store.get(f"{self._front}/{name}") or b""
        return int(value) if value.isdigit() and len(value) < 11 else -1

    def _frontend_moved(self) -> None:
        state = self._number("state")
        if state in (abi.XenbusStateInitialised, abi.XenbusStateConnected):
            if self._ring is None and self._connect():
                self._set_state(abi.XenbusStateConnected)
        elif state == abi.XenbusStateClosing:
            self._disconnect()
            self._set_state(abi.XenbusStateClosing)
        elif state in (abi.XenbusStateClosed, -1):
            self._disconnect()
            self._set_state(abi.XenbusStateClosed)
        elif state == abi.XenbusStateInitialising:
            self._disconnect()
            self._set_state(abi.XenbusStateInitWait)

    def _connect(self) -> bool:
        """Take up the ring and the event channel. False (and a report) if they are none."""
        protocol = self._store.get(f"{self._front}/protocol")
        if protocol not in (None, b"x86_64-abi"):
            return self._refuse("a ring for another processor")
        ring = self._number("ring-ref")
        if self._grants.page(ring, write=True) is None:
            return self._refuse(f"the ring's grant {ring} is none")
        send = self._events.serve(self._number("event-channel"), self.notified)
        if send is None:
            return self._refuse("its event channel is not open to the backend")
        self._ring, self._send, self._taken = ring, send, 0
        return True

    def _disconnect(self) -> None:
        self._ring, self._send = None, lambda: None

    def _refuse(self, why: str) -> bool:
        self._report(f"xen block device: the frontend broke a rule, device stopped: {why}")
        self._disconnect()
        self._set_state(abi.XenbusStateClosing)
        return False

    # The ring -----------------------------------------------------------------------------------

    def notified(self) -> None:
        """The frontend says that there are requests: do all there are (<xen/io/ring.h>)."""
        if self._ring is None:
            return
        ring = self._grants.page(self._ring, write=True)
        if ring is None or not self._may_write(ring):
            self._refuse("the ring's page is no longer granted, or is a page table")
            return
        self._dma.write_begin(ring, abi.PAGE_SIZE)
        view = self._dma.ram[ring:ring + abi.PAGE_SIZE]
        before = done = _U32.unpack_from(view, abi.BLKIF_RSP_PROD)[0]
        while True:
            produced = _U32.unpack_from(view, abi.BLKIF_REQ_PROD)[0]
            waiting = produced - self._taken & _INDEX
            if waiting > RING_SLOTS:
                self._refuse(f"{waiting} requests in a ring of {RING_SLOTS}")
                return
            if not waiting:
                # Ask to be told of the next one, and look once more for one that came before.
                _U32.pack_into(view, abi.BLKIF_REQ_EVENT, self._taken + 1 & _INDEX)
                break
            slot = abi.BLKIF_RING + _SLOT * (self._taken % RING_SLOTS)
            request = bytes(view[slot:slot + _SLOT])
            self._taken = self._taken + 1 & _INDEX
            operation, _, _, identity, _ = abi.BLKIF_REQUEST.unpack_from(request)
            status = self._request(request)
            slot = abi.BLKIF_RING + _SLOT * (done % RING_SLOTS)
            abi.BLKIF_RESPONSE.pack_into(view, slot, identity, operation, status)
            done = done + 1 & _INDEX
        _U32.pack_into(view, abi.BLKIF_RSP_PROD, done)
        wanted = _U32.unpack_from(view, abi.BLKIF_RSP_EVENT)[0]
        if done - wanted & _INDEX < done - before & _INDEX:
            self._send()

    def _request(self, request: bytes) -> int:
        """Do one request: BLKIF_RSP_..."""
        operation, count, _, _, sector = abi.BLKIF_REQUEST.unpack_from(request)
        try:
            if operation == abi.BLKIF_OP_FLUSH_DISKCACHE:
                self._disk.flush()
                return abi.BLKIF_RSP_OKAY
            if operation not in (abi.BLKIF_OP_READ, abi.BLKIF_OP_WRITE):
                return abi.BLKIF_RSP_EOPNOTSUPP
            reads = operation == abi.BLKIF_OP_READ
            if not 0 < count <= abi.BLKIF_MAX_SEGMENTS_PER_REQUEST:
                return abi.BLKIF_RSP_ERROR
            views = []
            for index in range(count):
                grant, first, last = abi.BLKIF_SEGMENT.unpack_from(
                    request, abi.BLKIF_REQUEST_SEG + index * abi.BLKIF_SEGMENT.size)
                page = self._grants.page(grant, write=reads)
                if page is None or not first <= last < abi.PAGE_SIZE // SECTOR or \
                        (reads and not self._may_write(page)):
                    return abi.BLKIF_RSP_ERROR
                start, length = page + first * SECTOR, (last - first + 1) * SECTOR
                if reads:
                    self._dma.write_begin(start, length)
                views.append(self._dma.ram[start:start + length])
            (self._disk.readv if reads else self._disk.writev)(views, sector * SECTOR)
        except OSError:
            return abi.BLKIF_RSP_ERROR
        return abi.BLKIF_RSP_OKAY

    def _may_write(self, page: int) -> bool:
        """Whether a page of the guest's is in no use that the VMM must check each write to."""
        frame = self._core.xen_frame(page >> abi.PAGE_SHIFT)
        return frame is not None and (frame[1] == 0 or frame[0] == _WRITABLE)
