# SPDX-License-Identifier: GPL-2.0-or-later
"""xen_version (17): what the hypervisor is and what a paravirtual domain can expect of it."""

from __future__ import annotations

from bt.xen import abi
from bt.xen.guest import GuestMemory, XenError

#: The release whose interface this is (the headers compared with are those of 4.17).
MAJOR, MINOR = 4, 17
EXTRAVERSION = b".0-ring1"

#: What Xen gives every 64-bit paravirtual domain. Not among them, and so 0:
#: writable_page_tables, auto_translated_physmap and supervisor_mode_kernel.
FEATURES = (1 << abi.XENFEAT_mmu_pt_update_preserve_ad | 1 << abi.XENFEAT_highmem_assist
            | 1 << abi.XENFEAT_gnttab_map_avail_bits
            | 1 << abi.XENFEAT_memory_op_vnode_supported | 1 << abi.XENFEAT_direct_mapped)

_CAPABILITIES = b"xen-3.0-x86_64 "
_COMPILE_INFO = abi.COMPILE_INFO.pack(b"Cython", b"ring1", b"ring1", b"")
_CHANGESET = b"ring1"
#: The domain's UUID, for /sys/hypervisor/uuid.
GUEST_HANDLE = bytes.fromhex("52696e67310040008000000000000001")

_FIXED = {
    abi.XENVER_extraversion: EXTRAVERSION.ljust(abi.XEN_EXTRAVERSION_LEN, b"\0"),
    abi.XENVER_compile_info: _COMPILE_INFO,
    abi.XENVER_capabilities: _CAPABILITIES.ljust(abi.XEN_CAPABILITIES_INFO_LEN, b"\0"),
    abi.XENVER_changeset: _CHANGESET.ljust(abi.XEN_CHANGESET_INFO_LEN, b"\0"),
    abi.XENVER_platform_parameters: abi.HYPERVISOR_VIRT_START.to_bytes(8, "little"),
    abi.XENVER_guest_handle: GUEST_HANDLE,
}


class Version:
    """All sub-operations of xen_version that an unprivileged domain may use."""

    def __init__(self, guest: GuestMemory) -> None:
        self._guest = guest

    def xen_version(self, operation: int, pointer: int, *_: int) -> int:
        if operation == abi.XENVER_version:
            return MAJOR << 16 | MINOR
        if operation == abi.XENVER_pagesize:
            if pointer:
                raise XenError(abi.XEN_EINVAL)
            return abi.PAGE_SIZE
        if operation == abi.XENVER_get_features:
            submap, _old = self._guest.unpack(pointer, abi.FEATURE_INFO)
            if submap != 0:
                raise XenError(abi.XEN_EINVAL)
            self._guest.pack(pointer, abi.FEATURE_INFO, submap, FEATURES)
            return 0
        if operation in (abi.XENVER_commandline, abi.XENVER_build_id):
            raise XenError(abi.XEN_EPERM)
        if operation not in _FIXED:
            raise XenError(abi.XEN_ENOSYS)
        self._guest.write(pointer, _FIXED[operation])
        return 0
