# SPDX-License-Identifier: GPL-2.0-or-later
"""A block, instruction by instruction: what the guest has there, and what runs in its place.

The recording holds the guest's bytes, the traps and the stubs; the rewritten bytes follow from
them as in the core: INT3 over the first byte of a trap, a jump over a stub's region.
"""

from __future__ import annotations

from dataclasses import dataclass

from bt.record.reader import Block, Exits, Recording, Site
from translator.rewriter import JUMP_LENGTH, TRAP
from translator.scanner import disassembler
from translator.sensitive import TABLE

_WHY = {
    "sensitive": "does not fault outside ring 0, but shows or changes what is not the guest's",
    "privileged": "faults outside ring 0",
    "wanted": "harmless, but the answer is the VMM's",
}


@dataclass(frozen=True)
class Line:
    """One instruction of a block.

    code, text: the guest's bytes and disassembly; now, now_text: what runs there instead, None
    where nothing changed; state: "", "trap", "stub" or "absorbed" (it moved into the stub before
    it); why: the reason for a change; exits, ns: how often and how long the VMM was entered here.
    """

    address: int
    code: bytes
    text: str
    now: bytes | None = None
    now_text: str = ""
    state: str = ""
    why: str = ""
    exits: int = 0
    ns: int = 0


@dataclass(frozen=True)
class Listing:
    """A block with its lines, and the stubs its sites lead to: [(address, bytes, text)]."""

    block: Block
    symbol: str | None
    source: str
    lines: list[Line]
    stubs: list[tuple[Site, list[tuple[int, bytes, str]]]]

    @property
    def exits(self) -> int:
        """Exits from this block."""
        return sum(line.exits for line in self.lines)

    @property
    def ns(self) -> int:
        """Host time spent in the VMM for them."""
        return sum(line.ns for line in self.lines)

    @property
    def changed(self) -> bool:
        """Whether anything in it was rewritten."""
        return any(line.state for line in self.lines)


class Lister:
    """Makes listings of one recording's blocks."""

    def __init__(self, recording: Recording) -> None:
        self.recording = recording
        self.exits: dict[int, list[Exits]] = {}
        for entry in recording.exits:
            self.exits.setdefault(entry.gva, []).append(entry)

    def listing(self, block: Block) -> Listing:
        """Both sides of a block."""
        sites = self.recording.sites
        lines: list[Line] = []
        stubs = []
        region_end = 0
        for address, code, text in disassemble(block.code, block.gva, block.bits):
            entries = self.exits.get(address, ())
            count, ns = sum(e.count for e in entries), sum(e.ns for e in entries)
            site = sites.get(address)
            if site is None or site.code != code or site.bits != block.bits:
                absorbed = address < region_end
                lines.append(Line(
                    address, code, text, _filled(code) if absorbed else None,
                    "(in the stub)" if absorbed else "", "absorbed" if absorbed else "",
                    "makes room for the jump to the stub" if absorbed else "", count, ns))
                continue
            if site.stub is not None and not site.taken_back:
                now = _jump(site)[:len(code)]
                state, now_text = "stub", f"jmp {site.stub_at:#x}"
                region_end = address + site.region
                stubs.append((site, disassemble(site.stub, site.stub_at, site.bits)))
            else:
                now = bytes([TRAP]) + code[1:]
                state, now_text = "trap", "int3"
            lines.append(Line(address, code, text, now, now_text, state, why(site), count, ns))
        return Listing(block, self.recording.symbol(block.gva), source(block), lines, stubs)


def why(site: Site) -> str:
    """Why an instruction was rewritten, in a line."""
    if not 0 <= site.row < len(TABLE):
        return "unknown"
    row = TABLE[site.row]
    reason = f"{row.name}: {row.instr_class}: {_WHY[row.instr_class]}"
    if site.taken_back:
        reason += "; it was a stub until something jumped into the middle of it"
    return reason


def source(block: Block) -> str:
    """Where code comes from, as far as an address and a privilege level tell."""
    return "kernel" if block.kernel else "user"


def disassemble(code: bytes, address: int, bits: int) -> list[tuple[int, bytes, str]]:
    """[(address, bytes, text)]; what cannot be decoded is shown byte by byte."""
    found: list[tuple[int, bytes, str]] = []
    at = 0
    while at < len(code):
        for where, size, mnemonic, operands in disassembler(bits).disasm_lite(
                code[at:], address + at):
            found.append((where, code[where - address:where - address + size],
                          f"{mnemonic} {operands}".rstrip()))
            at = where - address + size
        if at < len(code):
            found.append((address + at, code[at:at + 1], f".byte {code[at]:#04x}"))
            at += 1
    return found


def _jump(site: Site) -> bytes:
    distance = site.stub_at - (site.gva + JUMP_LENGTH) & 0xFFFFFFFF
    return (b"\xe9" + distance.to_bytes(4, "little")).ljust(site.region, bytes([TRAP]))


def _filled(code: bytes) -> bytes:
    return bytes([TRAP]) * len(code)
