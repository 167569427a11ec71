# SPDX-License-Identifier: GPL-2.0-or-later
"""Did the guest say it panicked?

A PC has no wire for "the kernel has given up": Linux prints it and then resets or halts, exactly
like an orderly end. The console is where it can be told apart. Only a reset or a halt *after* such
a line counts, so printing the words does nothing by itself.
"""

from __future__ import annotations

_MARK = b"Kernel panic - not syncing"
_KEEP = 256


class PanicWatch:
    """Watches console output in pieces of any size. ``text``: the panic line, or ""."""

    def __init__(self) -> None:
        self.text = ""
        self._tail = b""

    def see(self, data: bytes) -> None:
        """Look at what the console just printed."""
        if self.text and not self._tail:
            return
        text = self._tail + data
        at = text.find(_MARK)
        if at < 0:
            self._tail = text[-len(_MARK):]
            return
        line, end, _ = text[at:].partition(b"\n")
        self.text = line[:_KEEP].decode("ascii", "replace").strip()
        self._tail = b"" if end or len(line) > _KEEP else text[at:]
