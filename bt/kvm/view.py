# SPDX-License-Identifier: GPL-2.0-or-later
"""A stopped vCPU and its memory, as people and debuggers look at them."""

from __future__ import annotations

from bt.kvm import paging, state
from bt.machine.ram import Ram

_PAGE = 4096
_MAX_LOOK = 1 << 20


class GuestView:
    """Registers and memory of a vCPU, as the guest sees them."""

    _cpu: int
    _ram: Ram
    _halted: bool

    def registers(self) -> dict[str, int]:
        """The guest's registers, by name."""
        return state.registers(self._cpu)

    @property
    def bits(self) -> int:
        """Code size of the current segment: 16, 32 or 64."""
        return state.code_bits(state.SpecialRegisters(self._cpu))

    @property
    def real_cpl(self) -> int:
        """The guest's own, in the processor's guest mode: nothing is deprivileged here."""
        return self.registers()["cpl"]

    @property
    def linear_rip(self) -> int:
        """Linear address of the next instruction."""
        special = state.SpecialRegisters(self._cpu)
        rip = state.general(self._cpu)["rip"]
        if state.code_bits(special) == 64:
            return rip
        return special.segment("cs").base + rip & 0xFFFF_FFFF

    def _page_of(self, gva: int) -> paging.Page | None:
        control = state.SpecialRegisters(self._cpu).control
        return paging.translate(self._ram, control["cr0"], control["cr3"], control["cr4"],
                                control["efer"], gva & (1 << 64) - 1)

    def read_virtual(self, gva: int, length: int) -> bytes | None:
        """Guest memory by linear address with kernel rights; None if it is not all mapped RAM."""
        if not 0 < length <= _MAX_LOOK:
            return None
        found = bytearray()
        while len(found) < length:
            part = min(length - len(found), _PAGE - (gva + len(found)) % _PAGE)
            page = self._page_of(gva + len(found))
            if page is None or not self._ram.contains(page.gpa, part):
                return None
            found += self._ram.view[page.gpa:page.gpa + part]
        return bytes(found)

    def write_virtual(self, gva: int, data: bytes) -> bool:
        """Write guest memory by linear address with kernel rights; False if it is not writable.

        Then nothing is written.
        """
        if len(data) > _MAX_LOOK:
            return False
        parts: list[tuple[int, bytes]] = []
        at = 0
        while at < len(data):
            part = min(len(data) - at, _PAGE - (gva + at) % _PAGE)
            page = self._page_of(gva + at)
            if page is None or not page.writable or not self._ram.contains(page.gpa, part):
                return False
            parts.append((page.gpa, data[at:at + part]))
            at += part
        for gpa, piece in parts:
            self._ram.view[gpa:gpa + len(piece)] = piece
        return True

    def translate_address(self, gva: int) -> int | None:
        """Guest-physical address behind a linear one, with kernel rights; None if there is none."""
        page = self._page_of(gva)
        return None if page is None else page.gpa

    def read_register(self, name: str) -> int:
        """One register by a name of ``registers``. Raises KeyError."""
        return self.registers()[name]

    def write_register(self, name: str, value: int) -> None:
        """Change one (bt.kvm.state.write_register)."""
        state.write_register(self._cpu, name, value)
        if name == "rip":
            self._halted = False
