# SPDX-License-Identifier: GPL-2.0-or-later
"""Standard input of a command in the guest, over a serial line, with its end.

A raw serial line has no end of input. The guest's /init therefore leaves COM2 in canonical mode
with two special characters only (guests/linux/init): ^D, which ends a line without a newline, or
the input when the line is empty, and ^V, which quotes. Everything else passes as it is, so this
carries any bytes (Linux drivers/tty/n_tty.c; termios(3), "Canonical and noncanonical mode").
"""

from __future__ import annotations

READY = b"\x06"  # ACK: /init's word that COM2 is set up and input may be sent
END = b"\x04"

# The line discipline drops what exceeds 4095 bytes without a line end, so one is pushed earlier.
_LONGEST_LINE = 1024


def encode(data: bytes) -> bytes:
    """``data`` for COM2, such that the guest can read all of it at once."""
    out = bytearray()
    start = 0
    while start < len(data):
        newline = data.find(b"\n", start, start + _LONGEST_LINE)
        end = newline + 1 if newline >= 0 else min(start + _LONGEST_LINE, len(data))
        out += data[start:end].replace(b"\x16", b"\x16\x16").replace(b"\x04", b"\x16\x04")
        if newline < 0:
            out += END
        start = end
    return bytes(out)


def for_hvc(data: bytes) -> bytes:
    """What ``encode`` gave, for a Xen console: its driver takes ^O for the SysRq key, and two of
    them for one ^O (Linux drivers/tty/hvc/hvc_console.c, hvc_poll).
    """
    return data.replace(b"\x0f", b"\x0f\x0f")
