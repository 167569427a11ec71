# SPDX-License-Identifier: GPL-2.0-or-later
"""Which guest on a cable is which: numbers that two machines never have at the same time.

Two guests need different addresses before they have met, and users want to know them beforehand: so
the first machine on a cable is number 1, the second number 2. A number is taken by binding an
abstract Unix socket to its name (unix(7)): that fails for everybody else, leaves nothing behind,
and ends with the process.
"""

from __future__ import annotations

import errno
import os
import socket

from bt.errors import InputError

MOST = 254


def take_number(path: str) -> tuple[int, socket.socket]:
    """The lowest number (from 1) that is free on the cable at ``path``; it is held by the socket.

    Raises InputError when there is no such folder, or none is free.
    """
    try:
        folder = os.stat(os.path.dirname(path) or ".")
    except OSError as error:
        raise InputError(f"cannot use {path} as a cable: {error.strerror}") from None
    # The name itself may be long, and the folder may have several.
    cable = f"{folder.st_dev:x}:{folder.st_ino:x}:{os.path.basename(path)[-40:]}"
    for number in range(1, MOST + 1):
        holder = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        try:
            holder.bind(b"\0ring1-cable:" + os.fsencode(cable) + b":%d" % number)
            return number, holder
        except OSError as error:
            holder.close()
            if error.errno != errno.EADDRINUSE:
                raise InputError(f"cannot use {path} as a cable: {error.strerror}") from None
    raise InputError(f"too many machines on the cable {path}")
