# SPDX-License-Identifier: GPL-2.0-or-later
"""Event channels of the two-level kind: event_channel_op (32).

An event is a bit in shared_info; if it is not masked, its word's bit in the vCPU's selector goes up
with it, and then vcpu_info.evtchn_upcall_pending. On its way back to the guest the compiled core
looks at that byte and at the mask byte next to it, and calls the guest's event handler. All of this
lies in memory that the guest writes as it likes: nothing is read back here that must be true.
"""

from __future__ import annotations

import struct
from collections.abc import Callable

from bt.machine.ram import Ram
from bt.xen import abi
from bt.xen.guest import Core, GuestMemory, XenError
from bt.xen.store import BACKEND_ID, DOMAIN_ID

_PER_VCPU_VIRQS = (abi.VIRQ_TIMER, abi.VIRQ_DEBUG, abi.VIRQ_XENOPROF, abi.VIRQ_XENPMU)


class Channel:
    """One open port. ``status`` is abi.EVTCHNSTAT_...; the rest depends on it."""

    __slots__ = ("domid", "notify", "peer", "port", "status", "virq")

    def __init__(self, port: int, status: int) -> None:
        self.port = port
        self.status = status
        #: Unbound or interdomain: the domain at the other end.
        self.domid = 0
        #: Interdomain: what EVTCHNOP_send does at the other end, and the port there.
        self.notify: Callable[[], None] | None = None
        self.peer = 0
        self.virq = 0


class Events:
    """The event channels of one domain with one vCPU.

    ``vcpu_info`` is the guest-physical address of its struct vcpu_info.
    """

    def __init__(self, core: Core, guest: GuestMemory, ram: Ram, shared_info: int) -> None:
        self._core = core
        self._guest = guest
        self._view = ram.view
        self._pending = shared_info + abi.SHARED_EVTCHN_PENDING
        self._mask = shared_info + abi.SHARED_EVTCHN_MASK
        self.vcpu_info = shared_info
        self.ports: dict[int, Channel] = {}
        self._virqs: dict[int, Channel] = {}
        #: Called when the vCPU may have to wake up: with a port that became pending.
        self.on_pending: Callable[[int], None] = lambda port: None
        self._operations = {
            abi.EVTCHNOP_bind_interdomain: self._bind_interdomain,
            abi.EVTCHNOP_bind_virq: self._bind_virq,
            abi.EVTCHNOP_bind_pirq: self._no_permission,
            abi.EVTCHNOP_close: self._close,
            abi.EVTCHNOP_send: self._send,
            abi.EVTCHNOP_status: self._status,
            abi.EVTCHNOP_alloc_unbound: self._alloc_unbound,
            abi.EVTCHNOP_bind_ipi: self._bind_ipi,
            abi.EVTCHNOP_bind_vcpu: self._bind_vcpu,
            abi.EVTCHNOP_unmask: self._unmask,
            abi.EVTCHNOP_reset: self._reset,
        }

    # For the VMM ------------------------------------------------------------------------------

    def connect(self, port: int, notify: Callable[[], None]) -> Callable[[], None]:
        """Open ``port`` to something of ours; ``notify()`` is called when the guest sends.

        Gives the function that sends to the guest. It does nothing once the guest has closed the
        port.
        """
        channel = self.ports[port] = Channel(port, abi.EVTCHNSTAT_interdomain)
        channel.domid = BACKEND_ID
        channel.peer = port
        channel.notify = notify

        def send() -> None:
            if self.ports.get(port) is channel:
                self.raise_event(port)

        return send

    def serve(self, port: int, notify: Callable[[], None]) -> Callable[[], None] | None:
        """Connect a backend of ours to ``port``, which the guest has opened to domain 0.

        As :meth:`connect`; None if the port is not open to it.
        """
        channel = self.ports.get(port)
        if channel is None or channel.status != abi.EVTCHNSTAT_unbound \
                or channel.domid != BACKEND_ID:
            return None
        return self.connect(port, notify)

    def raise_virq(self, virq: int) -> None:
        """A virtual interrupt. Nothing happens if the guest has not bound it."""
        channel = self._virqs.get(virq)
        if channel is not None:
            self.raise_event(channel.port)

    def raise_event(self, port: int) -> None:
        """Make ``port`` pending (<xen/xen.h>, struct shared_info, says how)."""
        view = self._view
        at, bit = port >> 3, 1 << (port & 7)
        if view[self._pending + at] & bit:
            return
        view[self._pending + at] |= bit
        if not view[self._mask + at] & bit:
            self._select(port)
        self.on_pending(port)

    def is_pending(self, port: int) -> bool:
        """Whether the bit of ``port`` is set, masked or not."""
        return bool(self._view[self._pending + (port >> 3)] & 1 << (port & 7))

    @property
    def upcall_pending(self) -> bool:
        return bool(self._view[self.vcpu_info + abi.VCPU_INFO_PENDING])

    @property
    def upcall_masked(self) -> bool:
        return bool(self._view[self.vcpu_info + abi.VCPU_INFO_MASK])

    def move_vcpu_info(self, gpa: int) -> None:
        """struct vcpu_info lies at ``gpa`` now. All is marked pending, so that nothing is lost."""
        view = self._view
        view[gpa:gpa + abi.VCPU_INFO_SIZE] = view[self.vcpu_info:
                                                  self.vcpu_info + abi.VCPU_INFO_SIZE]
        self.vcpu_info = gpa
        struct.pack_into("<Q", view, gpa + abi.VCPU_INFO_PENDING_SEL, (1 << 64) - 1)
        view[gpa + abi.VCPU_INFO_PENDING] = 1
        self._core.xen_set_vcpu_info(gpa)

    def _select(self, port: int) -> None:
        word = port >> 6
        at = self.vcpu_info + abi.VCPU_INFO_PENDING_SEL + (word >> 3)
        bit = 1 << (word & 7)
        if not self._view[at] & bit:
            self._view[at] |= bit
            self._view[self.vcpu_info + abi.VCPU_INFO_PENDING] = 1

    # For the guest ----------------------------------------------------------------------------

    def event_channel_op(self, operation: int, pointer: int, *_: int) -> int:
        handler = self._operations.get(operation)
        if handler is None:
            # FIFO event channels among them: the guest then stays with the two-level kind.
            raise XenError(abi.XEN_ENOSYS)
        handler(pointer)
        return 0

    def _no_permission(self, pointer: int) -> None:
        raise XenError(abi.XEN_EPERM)

    def _open(self, status: int) -> Channel:
        """A channel on the lowest free port. Port 0 is never used."""
        for port in range(1, abi.EVTCHN_2L_NR_CHANNELS):
            if port not in self.ports:
                # What an earlier user of the port left is no news for this one.
                self._view[self._pending + (port >> 3)] &= ~(1 << (port & 7)) & 0xFF
                channel = self.ports[port] = Channel(port, status)
                return channel
        raise XenError(abi.XEN_ENOSPC)

    def _channel(self, port: int) -> Channel:
        channel = self.ports.get(port)
        if channel is None:
            raise XenError(abi.XEN_EINVAL)
        return channel

    def _send(self, pointer: int) -> None:
        (port,) = self._guest.unpack(pointer, abi.PORT)
        channel = self._channel(port)
        if channel.status == abi.EVTCHNSTAT_ipi:
            self.raise_event(port)
        elif channel.status == abi.EVTCHNSTAT_interdomain:
            if channel.notify is not None:
                channel.notify()
            else:
                self.raise_event(channel.peer)
        elif channel.status != abi.EVTCHNSTAT_unbound:
            raise XenError(abi.XEN_EINVAL)

    def _unmask(self, pointer: int) -> None:
        (port,) = self._guest.unpack(pointer, abi.PORT)
        if port >= abi.EVTCHN_2L_NR_CHANNELS:
            raise XenError(abi.XEN_EINVAL)
        at, bit = self._mask + (port >> 3), 1 << (port & 7)
        if self._view[at] & bit:
            self._view[at] &= ~bit & 0xFF
            if self.is_pending(port):
                self._select(port)

    def _bind_virq(self, pointer: int) -> None:
        virq, vcpu, _port = self._guest.unpack(pointer, abi.BIND_VIRQ)
        if virq >= abi.NR_VIRQS or (vcpu != 0 and virq not in _PER_VCPU_VIRQS):
            raise XenError(abi.XEN_EINVAL)
        self._check_vcpu(vcpu)
        if virq in self._virqs:
            raise XenError(abi.XEN_EEXIST)
        channel = self._open(abi.EVTCHNSTAT_virq)
        channel.virq = virq
        self._virqs[virq] = channel
        self._answer(channel, pointer, abi.BIND_VIRQ.pack(virq, vcpu, channel.port))

    def _bind_ipi(self, pointer: int) -> None:
        vcpu, _port = self._guest.unpack(pointer, abi.BIND_IPI)
        self._check_vcpu(vcpu)
        channel = self._open(abi.EVTCHNSTAT_ipi)
        self._answer(channel, pointer, abi.BIND_IPI.pack(vcpu, channel.port))

    def _alloc_unbound(self, pointer: int) -> None:
        domid, remote, _port = self._guest.unpack(pointer, abi.ALLOC_UNBOUND)
        self._check_self(domid)
        channel = self._open(abi.EVTCHNSTAT_unbound)
        channel.domid = DOMAIN_ID if remote == abi.DOMID_SELF else remote
        self._answer(channel, pointer, abi.ALLOC_UNBOUND.pack(domid, remote, channel.port))

    def _bind_interdomain(self, pointer: int) -> None:
        """The only other end that is ever open to this domain is its own."""
        remote, remote_port, _port = self._guest.unpack(pointer, abi.BIND_INTERDOMAIN)
        if remote not in (abi.DOMID_SELF, DOMAIN_ID, BACKEND_ID):
            raise XenError(abi.XEN_ESRCH)
        far = self.ports.get(remote_port)
        if remote == BACKEND_ID or far is None or far.status != abi.EVTCHNSTAT_unbound \
                or far.domid != DOMAIN_ID:
            raise XenError(abi.XEN_EINVAL)
        near = self._open(abi.EVTCHNSTAT_interdomain)
        self._answer(near, pointer, abi.BIND_INTERDOMAIN.pack(remote, remote_port, near.port))
        near.domid = far.domid = DOMAIN_ID
        near.peer, far.peer = far.port, near.port
        far.status = abi.EVTCHNSTAT_interdomain
        # Whatever was sent before nobody listened is delivered now.
        self.raise_event(near.port)

    def _bind_vcpu(self, pointer: int) -> None:
        port, vcpu = self._guest.unpack(pointer, abi.BIND_VCPU)
        self._check_vcpu(vcpu)
        channel = self._channel(port)
        if channel.status == abi.EVTCHNSTAT_ipi or \
                channel.status == abi.EVTCHNSTAT_virq and channel.virq in _PER_VCPU_VIRQS:
            raise XenError(abi.XEN_EINVAL)

    def _close(self, pointer: int) -> None:
        (port,) = self._guest.unpack(pointer, abi.PORT)
        self._shut(self._channel(port))

    def _shut(self, channel: Channel) -> None:
        del self.ports[channel.port]
        if self._virqs.get(channel.virq) is channel:
            del self._virqs[channel.virq]
        if channel.status == abi.EVTCHNSTAT_interdomain and channel.notify is None:
            peer = self.ports.get(channel.peer)
            if peer is not None and peer.peer == channel.port:
                peer.status = abi.EVTCHNSTAT_unbound
                peer.peer = 0

    def _reset(self, pointer: int) -> None:
        (domid,) = self._guest.unpack(pointer, abi.EVTCHN_RESET)
        self._check_self(domid)
        for channel in list(self.ports.values()):
            if channel.port in self.ports:
                self._shut(channel)

    def _status(self, pointer: int) -> None:
        domid, port, _status, _vcpu, _rest = self._guest.unpack(pointer, abi.EVTCHN_STATUS)
        self._check_self(domid)
        if port >= abi.EVTCHN_2L_NR_CHANNELS:
            raise XenError(abi.XEN_EINVAL)
        channel = self.ports.get(port)
        status, rest = abi.EVTCHNSTAT_closed, b""
        if channel is not None:
            status = channel.status
            if status == abi.EVTCHNSTAT_virq:
                rest = struct.pack("<I", channel.virq)
            elif status == abi.EVTCHNSTAT_unbound:
                rest = struct.pack("<H", channel.domid)
            elif status == abi.EVTCHNSTAT_interdomain:
                rest = struct.pack("<H2xI", channel.domid, channel.peer)
        self._guest.pack(pointer, abi.EVTCHN_STATUS, domid, port, status, 0, rest)

    def _answer(self, channel: Channel, pointer: int, data: bytes) -> None:
        """Tell the guest its new port; one that cannot be told is closed again."""
        try:
            self._guest.write(pointer, data)
        except XenError:
            self._shut(channel)
            raise

    @staticmethod
    def _check_vcpu(vcpu: int) -> None:
        if vcpu != 0:
            raise XenError(abi.XEN_ENOENT)

    @staticmethod
    def _check_self(domid: int) -> None:
        if domid not in (abi.DOMID_SELF, DOMAIN_ID):
            raise XenError(abi.XEN_EPERM if domid == BACKEND_ID else abi.XEN_ESRCH)
