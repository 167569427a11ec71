# SPDX-License-Identifier: GPL-2.0-or-later
"""grant_table_op (20): set up the grant table, version 1. Backends of ours look grants up in it.

A backend is done with a page before the guest runs again, so the bits that say "in use" are never
seen set and are not written.
"""

from __future__ import annotations

import struct

from bt.xen import abi
from bt.xen.frames import GRANT_FRAMES, XenFrames
from bt.xen.guest import Core, GuestMemory, XenError
from bt.xen.store import BACKEND_ID, DOMAIN_ID

# Requests that one hypercall may carry.
_MAX_COUNT = 64


class Grants:
    """The frames of the grant table, allocated as the guest asks for them."""

    def __init__(self, core: Core, guest: GuestMemory, frames: XenFrames) -> None:
        self._core = core
        self._guest = guest
        self._vmm = frames
        self._frames: list[int] = []
        self._operations = {
            abi.GNTTABOP_setup_table: (self._setup_table, abi.SETUP_TABLE.size),
            abi.GNTTABOP_query_size: (self._query_size, abi.QUERY_SIZE.size),
            abi.GNTTABOP_set_version: (self._set_version, abi.SET_VERSION.size),
            abi.GNTTABOP_get_version: (self._get_version, abi.GET_VERSION.size),
        }

    def page(self, reference: int, *, write: bool) -> int | None:
        """Guest-physical address of the page that the guest grants to domain 0; None if it does
        not, or not for writing, or if the page is not its own."""
        frame, entry = divmod(reference, abi.PAGE_SIZE // abi.GRANT_ENTRY.size)
        if not 0 <= frame < len(self._frames):
            return None
        flags, domid, mfn = abi.GRANT_ENTRY.unpack_from(
            self._vmm.ram.view,
            (self._frames[frame] << abi.PAGE_SHIFT) + entry * abi.GRANT_ENTRY.size)
        if flags & abi.GTF_type_mask != abi.GTF_permit_access or domid != BACKEND_ID \
                or mfn >= self._vmm.nr_pages or (write and flags & abi.GTF_readonly):
            return None
        return mfn << abi.PAGE_SHIFT

    def grant_table_op(self, operation: int, pointer: int, count: int, *_: int) -> int:
        found = self._operations.get(operation)
        if found is None:
            raise XenError(abi.XEN_ENOSYS)
        count &= 0xFFFF_FFFF
        if count > _MAX_COUNT:
            raise XenError(abi.XEN_EINVAL)
        handler, size = found
        for index in range(count):
            handler(pointer + index * size)
        return 0

    def _setup_table(self, pointer: int) -> None:
        dom, wanted, _status, frame_list = self._guest.unpack(pointer, abi.SETUP_TABLE)
        if not _is_self(dom):
            status = abi.GNTST_bad_domain
        elif wanted > GRANT_FRAMES:
            status = abi.GNTST_general_error
        else:
            while len(self._frames) < wanted:
                frame = self._vmm.share()
                self._core.xen_share(frame, True)
                self._frames.append(frame)
            self._guest.write(frame_list, struct.pack(f"<{wanted}Q", *self._frames[:wanted]))
            status = abi.GNTST_okay
        self._guest.pack(pointer, abi.SETUP_TABLE, dom, wanted, status, frame_list)

    def _query_size(self, pointer: int) -> None:
        dom, _frames, _most, _status = self._guest.unpack(pointer, abi.QUERY_SIZE)
        if _is_self(dom):
            self._guest.pack(pointer, abi.QUERY_SIZE, dom, len(self._frames), GRANT_FRAMES,
                             abi.GNTST_okay)
        else:
            self._guest.pack(pointer, abi.QUERY_SIZE, dom, 0, 0, abi.GNTST_bad_domain)

    def _set_version(self, pointer: int) -> None:
        """Version 2 does not exist here, as on a Xen started with gnttab=max-ver:1."""
        (version,) = self._guest.unpack(pointer, abi.SET_VERSION)
        if version not in (1, 2):
            raise XenError(abi.XEN_EINVAL)
        self._guest.pack(pointer, abi.SET_VERSION, 1)
        if version == 2:
            raise XenError(abi.XEN_ENOSYS)

    def _get_version(self, pointer: int) -> None:
        dom, _version = self._guest.unpack(pointer, abi.GET_VERSION)
        if not _is_self(dom):
            raise XenError(abi.XEN_EPERM)
        self._guest.pack(pointer, abi.GET_VERSION, dom, 1)


def _is_self(domid: int) -> bool:
    return domid in (abi.DOMID_SELF, DOMAIN_ID)
