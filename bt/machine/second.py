# SPDX-License-Identifier: GPL-2.0-or-later
"""The second level of translation under engine hvm: which guest-physical pages there are, which may
be written, and which were.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from bt.errors import InputError

if TYPE_CHECKING:
    from bt.engines import EngineInfo

PAGE = 4096


class SecondLevel:
    """One machine's. Use it while the machine does not run, or from a hook."""

    def __init__(self, vcpu: Any, engine: EngineInfo) -> None:
        if not hasattr(vcpu, "protect_memory") or not engine.intercepts:
            raise InputError(f"engine {engine.name} has no second level of translation: hvm has")
        self._vcpu = vcpu

    @property
    def allocated(self) -> int:
        """Bytes of RAM that the guest, its loader or a device has touched so far."""
        return int(self._vcpu.present_pages()) * PAGE

    def protect(self, gpa: int, length: int, readonly: bool = True) -> None:
        """Drop the guest's stores to these pages from now on (or take them again).

        Each store is an exit, "protected memory written". Raises InputError outside of RAM.
        """
        try:
            self._vcpu.protect_memory(gpa, length, readonly)
        except (ValueError, OverflowError):
            raise InputError(f"no RAM at {gpa:#x}+{length:#x}") from None

    def track(self, on: bool = True) -> None:
        """Note which pages are written, by the guest and by its devices. Starts with none."""
        if on:
            self._vcpu.written_pages(True)
        self._vcpu.track_writes(on)

    def written(self, clear: bool = True) -> bytes:
        """The bitmap of pages written since it was last cleared.

        Page n is bit n % 8 of byte n // 8.
        """
        return bytes(self._vcpu.written_pages(clear))
