# SPDX-License-Identifier: GPL-2.0-or-later
"""The host's own network stack: a TAP interface, ``--net tap:NAME``.

Source: Documentation/networking/tuntap.rst and include/uapi/linux/if_tun.h of Linux. The kernel
takes and gives frames with a virtio-net header, so it closes checksums and cuts TCP where needed.
"""

from __future__ import annotations

import errno
import fcntl
import os
import struct

from bt.errors import InputError
from bt.net import header
from bt.net.link import Card, Host, Link

_DEVICE = "/dev/net/tun"
_NAME_MAX = 15  # IFNAMSIZ, with its NUL
_IFF_TAP, _IFF_NO_PI, _IFF_VNET_HDR = 0x0002, 0x1000, 0x4000
_TUNSETIFF, _TUNSETOFFLOAD, _TUNSETVNETHDRSZ = 0x400454CA, 0x400454D0, 0x400454D8
_F_CSUM, _F_TSO4, _F_TSO6 = 1, 2, 4
_HINTS = {
    errno.ENOENT: f"there is no {_DEVICE} here",
    errno.ENODEV: f"there is no {_DEVICE} here",
    errno.EPERM: "not permitted; root can make it yours: ip tuntap add {name} mode tap user {me}",
    errno.EACCES: f"no right to use {_DEVICE}",
    errno.EBUSY: "somebody else has it",
    errno.EINVAL: "it is not a TAP interface that frames with headers can be had from",
}


class Tap(Link):
    """The TAP interface ``name``, which is made if it is not there and we may."""

    def __init__(self, name: str) -> None:
        super().__init__()
        if not 0 < len(name.encode()) <= _NAME_MAX or "/" in name or "%" in name:
            raise InputError(f"no name for a TAP interface: {name!r}")
        self._name = name

    def attach(self, host: Host, card: Card) -> None:
        self._card = card
        fd = -1
        try:
            fd = os.open(_DEVICE, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
            flags = _IFF_TAP | _IFF_NO_PI | _IFF_VNET_HDR
            fcntl.ioctl(fd, _TUNSETIFF, struct.pack("16sH22x", self._name.encode(), flags))
            fcntl.ioctl(fd, _TUNSETVNETHDRSZ, struct.pack("i", header.SIZE))
            fcntl.ioctl(fd, _TUNSETOFFLOAD, 0)
        except OSError as error:
            if fd >= 0:
                os.close(fd)
            why = _HINTS.get(error.errno or 0, error.strerror).format(
                name=self._name, me=os.environ.get("USER", "USER"))
            raise InputError(f"cannot use tap:{self._name}: {why}") from None
        self._use(host.watcher, fd)
        self._set_up(True)
        self.later()

    def agree(self, checksum: bool, tcp4: bool, tcp6: bool) -> None:
        if self._fd < 0:
            return
        flags = 0
        if checksum:
            flags = _F_CSUM | (_F_TSO4 if tcp4 else 0) | (_F_TSO6 if tcp6 else 0)
        fcntl.ioctl(self._fd, _TUNSETOFFLOAD, flags)
