# SPDX-License-Identifier: GPL-2.0-or-later
"""physdev_op (33): the I/O privileges that the guest's kernel gives its programs.

There are no devices behind the ports of a domain, so both are noted and change nothing: reads give
ones and writes vanish with any privilege.
"""

from __future__ import annotations

from bt.xen import abi
from bt.xen.guest import GuestMemory, XenError

_PORTS = 1 << 16


class PhysDev:
    """``iopl`` is 0 to 3; ``bitmap`` the address (gva) and length in ports of the I/O bitmap."""

    def __init__(self, guest: GuestMemory) -> None:
        self._guest = guest
        self.iopl = 0
        self.bitmap = (0, 0)

    def physdev_op(self, operation: int, pointer: int, *_: int) -> int:
        if operation == abi.PHYSDEVOP_set_iopl:
            (iopl,) = self._guest.unpack(pointer, abi.SET_IOPL)
            if iopl > 3:
                raise XenError(abi.XEN_EINVAL)
            self.iopl = iopl
        elif operation == abi.PHYSDEVOP_set_iobitmap:
            bitmap, ports = self._guest.unpack(pointer, abi.SET_IOBITMAP)
            if ports > _PORTS:
                raise XenError(abi.XEN_EINVAL)
            self.bitmap = (bitmap, ports)
        else:
            raise XenError(abi.XEN_ENOSYS)
        return 0
