# SPDX-License-Identifier: GPL-2.0-or-later
"""Making a kernel paravirtual: its image in, an image for Ring1's own interface out.

Static rewriting knows less than a translator that sees what runs, so it is careful:

1. *What is code.* Recursive descent from the entry point, from function symbols, and from other
   symbols that code found so far refers to. A linear sweep covers what is left of a function whose
   symbol says how long it is. Nothing else is touched: bytes that are not known to be code may be
   data. ``jmp far`` into a segment of another size is followed through the GDT that LGDT names.
2. *What replaces it.* A jump to a stub, where five bytes can be had: the instruction's own, or
   with plain instructions behind it that nothing is known to jump to. The stub works on the vCPU
   page (`stubs`), or makes a hypercall (`hypercall_text`). Everywhere else an INT3.
3. *Where the stubs are.* In the VMM's window, not in the kernel's memory: they are there whatever
   the kernel maps, and no memory of the kernel's is taken from it.

What was missed still runs at CPL 1: a privileged instruction is then trapped and emulated, slowly;
a sensitive one shows the truth. The report therefore says how far the search went.
"""

from __future__ import annotations

import struct
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cache
from typing import Any, NamedTuple

import keystone
from capstone import CS_GRP_CALL, CS_GRP_IRET, CS_GRP_JUMP, CS_GRP_RET
from capstone import x86_const as x86

from translator import pvabi, vcpupage
from translator.image import Addition, ImageError, KernelImage, Symbol
from translator.rewriter import JUMP_LENGTH, PAGE, TRAP, absorbable, ends_region, jump
from translator.scanner import disassembler, scan_block
from translator.sensitive import Row
from translator.stubs import MAX_STUB, make_stub

_MAX_INSTRUCTIONS = 1_000_000
_MAX_CODE = 16 << 20
_LINUX_BANNER = b"Linux version "
#: Rows that reach the VMM by themselves, with the right result, whoever executes them.
LEFT = {"INT_N": "software interrupts of the kernel reach the VMM by themselves"}
#: Not a sign of a kernel: C libraries end a program's start-up code with it.
_NO_SIGN = "HLT"
_ENDS = frozenset({
    x86.X86_INS_UD2, x86.X86_INS_INT3, x86.X86_INS_SYSRET, x86.X86_INS_SYSRETQ,
    x86.X86_INS_SYSEXIT, x86.X86_INS_SYSEXITQ, x86.X86_INS_RETF, x86.X86_INS_RETFQ,
})
_PT_R_X = 5
_SHT_PROGBITS, _SHT_NOTE = 1, 7
_TEXT_RUN = 6           # so many printable bytes up to a NUL are a string


class PatchError(ImageError):
    """There is nothing to patch, or it may not be patched. One line, without the file's name."""


class Insn(NamedTuple):
    """An instruction; ``row``: of the table, if it is one that a kernel must not execute."""

    address: int
    bits: int
    code: bytes
    row: Row | None

    @property
    def end(self) -> int:
        return self.address + len(self.code)


@dataclass(frozen=True)
class Site:
    """One sensitive instruction. how: "inline", "hypercall", "trap" or "left" (with ``why``)."""

    address: int
    bits: int
    row: str
    text: str
    how: str
    why: str = ""


@dataclass(frozen=True)
class Report:
    """What was done. ``instructions``: looked at; ``unreached``: symbols in code, never reached.

    ``code_bytes`` may hold code, ``reached_bytes`` of them are instructions that were looked at.
    """

    sites: tuple[Site, ...]
    instructions: int
    roots: int
    stripped: bool
    unreached: tuple[str, ...]
    code_bytes: int
    reached_bytes: int
    stub_bytes: int
    counts: dict[str, int] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """Everything, as plain JSON data."""
        return {
            "counts": self.counts, "instructions": self.instructions, "roots": self.roots,
            "stripped": self.stripped, "unreached_symbols": list(self.unreached),
            "code_bytes": self.code_bytes, "reached_bytes": self.reached_bytes,
            "stub_bytes": self.stub_bytes,
            "sites": [{"address": s.address, "bits": s.bits, "row": s.row, "text": s.text,
                       "how": s.how, "why": s.why} for s in self.sites],
        }


def patch(data: bytes, *, stubs: bool = True) -> tuple[bytes, Report]:
    """The paravirtual version of the kernel image ``data``, and what was done to it.

    ``stubs=False`` uses traps only: no instruction moves, whatever may jump where. Raises
    ImageError (PatchError) with one line for everything that cannot be patched.
    """
    image = KernelImage(data)
    notes = image.notes()
    if pvabi.NOTE_TRAPS in notes:
        raise PatchError("is patched already")
    if pvabi.NOTE_INTERFACE in notes:
        raise PatchError("is paravirtual already")
    if _LINUX_BANNER in data and image.symbols and len(data) > 4 << 20:
        raise PatchError("is a Linux kernel: it speaks Xen's interface already")
    code = _Code(image)
    code.find()
    found = [insn for insn in code.instructions() if insn.row is not None]
    if not any(insn.row.instr_class == "privileged" and insn.row.name != _NO_SIGN
               for insn in found if insn.row is not None):
        raise PatchError("is no kernel: no privileged instruction was found in it")
    writer = _Writer(image, code, stubs)
    for insn in found:
        writer.replace(insn)
    counts = Counter(site.how for site in writer.sites)
    report = Report(tuple(writer.sites), len(code.found), code.roots, not image.symbols,
                    tuple(code.unreached()), sum(end - start for start, end in code.ranges),
                    sum(len(insn.code) for insn in code.found.values()), len(writer.blob),
                    {how: counts[how] for how in ("inline", "hypercall", "trap", "left")})
    return writer.finish(), report


def code_sizes(data: bytes) -> list[tuple[int, int]]:
    """(address, bits) from where on code of another size was found, by rising address.

    A kernel may switch modes anywhere. Raises ImageError for what cannot be patched.
    """
    code = _Code(KernelImage(data))
    code.find()
    changes: list[tuple[int, int]] = []
    for insn in code.instructions():
        if not changes or changes[-1][1] != insn.bits:
            changes.append((insn.address, insn.bits))
    return changes


# -- what is code --------------------------------------------------------------------------------


class _Code:
    """Every instruction that can be shown to be one."""

    def __init__(self, image: KernelImage) -> None:
        self.image = image
        self.ranges = image.code_ranges()
        if sum(end - start for start, end in self.ranges) > _MAX_CODE:
            raise PatchError("has more code than can be patched (16 MB)")
        self.found: dict[int, Insn] = {}
        self.targets: set[int] = {symbol.value for symbol in image.symbols}
        self.references: dict[int, int] = {}        # address -> bits of the code that names it
        self.gdts: list[int] = []                   # addresses of LGDT operands
        self.displaced: set[int] = set()            # found while the code may run elsewhere
        self.roots = 0

    def instructions(self) -> Iterator[Insn]:
        """All of them, by rising address."""
        for address in sorted(self.found):
            yield self.found[address]

    def find(self) -> None:
        entry, moved = self._entry()
        wide = self.image.bits == 64 and self.image.multiboot is None
        self._descend(entry, 64 if wide else 32)
        if moved:
            self.displaced = set(self.found)
        functions = [s for s in self.image.symbols if s.function and self._inside(s.value)]
        for symbol in functions:
            self._descend(symbol.value, self._bits_near(symbol.value))
        names = {symbol.value for symbol in self.image.symbols}
        while True:
            new = [(address, bits) for address, bits in self.references.items()
                   if address in names and address not in self.found and self._inside(address)
                   and not self._is_text(address)]
            self.references.clear()
            if not new:
                break
            for address, bits in new:
                self._descend(address, bits)
        for symbol in functions:
            self._sweep(symbol)

    def unreached(self) -> list[str]:
        """Names of symbols in code ranges at which no instruction was found."""
        return sorted({s.name for s in self.image.symbols
                       if self._inside(s.value) and s.value not in self.found})

    def _entry(self) -> tuple[int, bool]:
        """The entry point as a virtual address, and whether the kernel may start elsewhere."""
        entry = self.image.entry
        for s in self.image.loads:
            if s.vaddr <= entry < s.vaddr + s.filesz:
                return entry, s.vaddr != s.paddr
        for s in self.image.loads:
            if s.paddr <= entry < s.paddr + s.filesz:
                return entry - s.paddr + s.vaddr, True
        raise PatchError(f"its entry point {entry:#x} is not in the file")

    def _inside(self, address: int) -> bool:
        if self.image.multiboot and self.image.offset(address) in self.image.multiboot:
            return False
        return any(start <= address < end for start, end in self.ranges)

    def _is_text(self, address: int) -> bool:
        head, nul, _ = self.image.read(address, 4096).partition(b"\0")
        return bool(nul) and len(head) >= _TEXT_RUN and \
            all(32 <= byte < 127 or byte in b"\t\n\r" for byte in head)

    def _bits_near(self, address: int) -> int:
        """Code size of what is around: the nearest instruction below, else the file's class."""
        below = max((a for a in self.found if a <= address), default=None)
        if below is not None and self.image.bits == 32:
            return self.found[below].bits
        return self.image.bits

    def _bounded(self, address: int) -> bytes:
        """The next 15 bytes, but none outside of the code range."""
        for start, end in self.ranges:
            if start <= address < end:
                return self.image.read(address, min(15, end - address))
        return b""

    def _descend(self, root: int, bits: int) -> None:
        self.roots += 1
        self.targets.add(root)
        work = [(root, bits)]
        while work:
            address, bits = work.pop()
            while address not in self.found and self._inside(address):
                insn, jumps, falls = self._decode(address, bits)
                work += jumps
                self.targets.update(target for target, _ in jumps)
                if insn is None or not falls:
                    break
                address = insn.end

    def _decode(self, address: int,
                bits: int) -> tuple[Insn | None, list[tuple[int, int]], bool]:
        """Record the instruction at ``address``: it, where it jumps to, whether it falls through.
        """
        cs = next(disassembler(bits, True).disasm(self._bounded(address), address, 1), None)
        if cs is None:
            return None, [], False
        if len(self.found) >= _MAX_INSTRUCTIONS:
            raise PatchError(f"has more than {_MAX_INSTRUCTIONS} instructions")
        findings = scan_block(bytes(cs.bytes), address, bits).findings
        insn = Insn(address, bits, bytes(cs.bytes), findings[0].row if findings else None)
        self.found[address] = insn
        mask = (1 << bits) - 1
        operands = cs.operands
        direct = bool(operands) and operands[0].type == x86.X86_OP_IMM
        if cs.id in (x86.X86_INS_LJMP, x86.X86_INS_LCALL):
            jumps = []
            if direct and len(operands) == 2:
                selector, target = operands[0].imm & 0xFFFF, operands[1].imm & mask
                jumps = [(target, self._segment_bits(selector, bits))]
            return insn, jumps, cs.id == x86.X86_INS_LCALL
        if cs.group(CS_GRP_JUMP) or cs.group(CS_GRP_CALL):
            jumps = [(operands[0].imm & mask, bits)] if direct else []
            return insn, jumps, cs.id != x86.X86_INS_JMP
        self._refer(cs, insn, operands)
        return insn, [], not (cs.id in _ENDS or cs.group(CS_GRP_RET) or cs.group(CS_GRP_IRET))

    def _refer(self, cs: Any, insn: Insn, operands: Any) -> None:
        """Addresses that an ordinary instruction names."""
        for operand in operands:
            if operand.type == x86.X86_OP_IMM:
                self.references[operand.imm & (1 << insn.bits) - 1] = insn.bits
            elif operand.type == x86.X86_OP_MEM:
                address = _absolute(operand, insn)
                if address is not None and cs.id == x86.X86_INS_LEA:
                    self.references[address] = insn.bits
                elif address is not None and insn.row is not None and insn.row.name == "LGDT":
                    self.gdts.append(address)
        self.targets.update(self.references)

    def _segment_bits(self, selector: int, bits: int) -> int:
        """Code size of a segment, looked up in the GDTs that the kernel loads; else ``bits``."""
        for pointer in self.gdts:
            raw = self.image.read(pointer, 6)
            if len(raw) < 6:
                continue
            limit, base = struct.unpack("<HI", raw)
            entry = self.image.read(base + (selector & 0xFFF8), 8)
            if (selector | 7) > limit or len(entry) < 8 or selector & 4:
                continue
            high = int.from_bytes(entry[4:], "little")
            if high & 0x1800 == 0x1800:             # a code segment
                return 64 if high & 1 << 21 else 32 if high & 1 << 22 else 16
        return bits

    def _sweep(self, symbol: Symbol) -> None:
        """What descent left out of a function of known length."""
        address, bits = symbol.value, self._bits_near(symbol.value)
        end = symbol.value + min(symbol.size, _MAX_CODE)
        while address < end:
            if address not in self.found:
                if not self._inside(address):
                    return
                insn, jumps, _ = self._decode(address, bits)
                for target, width in jumps:
                    self._descend(target, width)
                if insn is None:                    # a table, say
                    return
            address = self.found[address].end


def _absolute(operand: Any, insn: Insn) -> int | None:
    """The address of a memory operand that does not depend on a register; None if it does."""
    mem = operand.mem
    if mem.index or mem.segment:
        return None
    if mem.base == x86.X86_REG_RIP:
        return insn.end + mem.disp & (1 << 64) - 1
    return None if mem.base else mem.disp & (1 << insn.bits) - 1


# -- what replaces it ----------------------------------------------------------------------------


class _Writer:
    """Collects stubs and traps, and writes the new image."""

    def __init__(self, image: KernelImage, code: _Code, stubs: bool) -> None:
        self.image = image
        self.code = code
        self.stubs = stubs
        self.out = bytearray(image.data)
        self.blob = bytearray()
        self.traps: list[pvabi.Trap] = []
        self.sites: list[Site] = []
        self.covered: dict[int, int] = {}           # bytes of regions and traps -> their site

    def replace(self, insn: Insn) -> None:
        """Replace one sensitive instruction by the best that fits."""
        assert insn.row is not None
        _, _, *words = next(disassembler(insn.bits).disasm_lite(insn.code, insn.address, 1))
        text = " ".join(words).strip()
        why = LEFT.get(insn.row.name, "")
        if not why and any(self.covered.get(a, insn.address) != insn.address
                           for a in range(insn.address, insn.end)):
            why = "another instruction that is replaced overlaps it"
        if why:
            how = "left"
        else:
            how = self._stub(insn) or "trap"
            if how == "trap":
                self._put(insn.address, bytes([TRAP]))
                self.traps.append(pvabi.Trap(insn.address, insn.address, insn.end, insn.bits,
                                             insn.code))
        self.sites.append(Site(insn.address, insn.bits, insn.row.name, text, how, why))

    def _put(self, address: int, code: bytes) -> None:
        at = self.image.offset(address)
        assert at is not None
        self.out[at:at + len(code)] = code
        for i in range(len(code)):
            self.covered[address + i] = address

    def _absorb(self, insn: Insn) -> list[bytes] | None:
        """The instructions that move with ``insn`` to make five bytes; None if that cannot be."""
        absorbed: list[bytes] = []
        address = insn.end
        while address - insn.address < JUMP_LENGTH:
            follower = self.code.found.get(address)
            if follower is None or follower.bits != insn.bits or follower.row is not None:
                return None
            # Not one byte of it may be a place that something else knows of.
            if any(a in self.code.targets for a in range(address, follower.end)):
                return None
            absorbed.append(follower.code)
            address = follower.end
            if ends_region(follower.code, 0, insn.bits) is not None:
                break
            if not absorbable(follower.code, insn.bits) or touches_memory(follower):
                return None
        if address - insn.address < JUMP_LENGTH:
            return None
        return absorbed

    def _stub(self, insn: Insn) -> str | None:
        """Replace by a jump to a stub: "inline" or "hypercall"; None if there is no way."""
        if not self.stubs or insn.bits == 16 or insn.address in self.code.displaced:
            return None
        absorbed = self._absorb(insn)
        if absorbed is None:
            return None
        at = len(self.blob) + 15 & ~15
        if at % PAGE + 2 * MAX_STUB > PAGE:
            at = at + PAGE - 1 & -PAGE
        if at + 2 * MAX_STUB > pvabi.STUBS_ROOM:
            return None
        window = pvabi.WINDOW if insn.bits == 64 else pvabi.WINDOW32
        address = window + pvabi.STUBS_OFFSET + at
        made = inline_stub(insn, absorbed, address, window) or \
            hypercall_stub(insn, absorbed, address, window)
        leap = jump(insn.address, address, insn.bits)
        if made is None or leap is None:
            return None
        how, code, traps, region = made
        self.blob += bytes([TRAP]) * (at - len(self.blob)) + code
        self.traps += traps
        self._put(insn.address, leap.ljust(region, bytes([TRAP])))
        return how

    def finish(self) -> bytes:
        """The new image."""
        notes = pvabi.note(pvabi.NOTE_INTERFACE, pvabi.INTERFACE.pack(pvabi.VERSION, 0, 0, 0)) \
            + pvabi.note(pvabi.NOTE_TRAPS, pvabi.pack_traps(self.traps))
        window = pvabi.WINDOW if self.image.bits == 64 else pvabi.WINDOW32
        additions = [Addition(".note.ring1", _SHT_NOTE, 0, 4, 4, 0, notes, 4)]
        if self.blob:
            additions.append(Addition(
                ".ring1.stubs", _SHT_PROGBITS, 0, pvabi.PT_STUBS, _PT_R_X,
                window + pvabi.STUBS_OFFSET, bytes(self.blob), 16))
        return self.image.with_additions(bytes(self.out), additions)


#: A stub: how, its code, the traps in it, and the bytes that its jump replaces.
Made = tuple[str, bytes, list[pvabi.Trap], int]


def inline_stub(insn: Insn, absorbed: list[bytes], address: int,
                window: int) -> Made | None:
    """A stub at ``address`` that does ``insn`` on the vCPU page; None if there is no template."""
    assert insn.row is not None
    stub = make_stub(insn.row.name, insn.code, absorbed, insn.address, address, window,
                     insn.bits)
    if stub is None:
        return None
    traps = [pvabi.Trap(address + offset, insn.address, address + stub.resume, insn.bits,
                        insn.code) for offset in stub.slow_traps]
    return "inline", stub.code, traps, stub.region

def hypercall_stub(insn: Insn, absorbed: list[bytes], address: int,
                   window: int) -> Made | None:
    """A stub at ``address`` that makes a hypercall of ``insn``; None if there is none for it."""
    text = hypercall_text(insn)
    if text is None:
        return None
    code, slow = _assemble(text, insn.bits, window)
    resume = len(code)
    next_address = insn.end
    for piece in absorbed:
        target = ends_region(piece, next_address, insn.bits)
        if target is not None and len(piece) > 1:
            far = jump(address + len(code), target, insn.bits)
            if far is None:
                return None
            piece_code = far
        else:
            piece_code = piece
        code += piece_code
        next_address += len(piece)
    back = jump(address + len(code), next_address, insn.bits)
    if back is None or len(code) + len(back) > 2 * MAX_STUB:
        return None
    traps = [pvabi.Trap(address + slow, insn.address, address + resume, insn.bits, insn.code)]
    region = max(JUMP_LENGTH, next_address - insn.address)
    return "hypercall", code + back, traps if slow >= 0 else [], region


def touches_memory(insn: Insn) -> bool:
    """Whether it may fault: in a stub, the fault would show the stub's address."""
    cs = next(disassembler(insn.bits, True).disasm(insn.code, insn.address, 1))
    return cs.id != x86.X86_INS_LEA and cs.id != x86.X86_INS_NOP and \
        any(operand.type == x86.X86_OP_MEM for operand in cs.operands)


# Hypercall stubs. These registers carry the number and the arguments, and are kept in the vCPU page
# meanwhile; its result is stored there, to be "restored". No instruction here changes a
# flag. An error leads to an INT3: the VMM does the instruction itself, and raises its fault.
_REGISTERS = {64: ("rax", "rdi", "rsi", "rdx"), 32: ("eax", "ebx", "ecx", "edx")}
_SAVES = ("SAVE0", "SAVE1", "SAVE2", "SAVE3")
_CR = {0: 0, 3: 3, 4: 4, 8: 8}
_NAMES = {64: "rax rcx rdx rbx rsp rbp rsi rdi r8 r9 r10 r11 r12 r13 r14 r15".split(),
          32: "eax ecx edx ebx esp ebp esi edi".split()}


def hypercall_text(insn: Insn) -> tuple[str, ...] | None:
    """Lines for keystone: load the arguments, "call NAME", take the results. None: no template.

    The line "check" stands for: go to the INT3 if there was an error.
    """
    assert insn.row is not None
    bits, name = insn.bits, insn.row.name
    _, r1, r2, r3 = _REGISTERS[bits]
    cs = next(disassembler(bits, True).disasm(insn.code, insn.address, 1))
    prefixes = set(cs.prefix) - {0}
    if name == "MOV_TO_CR" and not prefixes:
        modrm = insn.code[-1]
        number = (modrm >> 3 & 7) | (8 if cs.rex & 4 else 0)
        source = (modrm & 7) | (8 if cs.rex & 1 else 0)
        if number not in _CR:
            return None
        # The operand goes to {2} first: it may be any of the registers, all still untouched.
        return (f"mov {r2}, {_NAMES[bits][source]}", f"mov {r1}, {number:#x}", "call write_cr",
                "check")
    if name in ("LGDT", "LIDT", "INVLPG") and not prefixes:
        operand = cs.operands[0]
        absolute = _absolute(operand, insn)
        if operand.mem.segment:
            return None
        if absolute is not None:
            load = f"movabs {r1}, {absolute:#x}" if bits == 64 else f"mov {r1}, {absolute:#x}"
        else:
            load = f"lea {r1}, [{_memory(cs, operand)}]"
        call = {"LGDT": "set_gdt", "LIDT": "set_idt", "INVLPG": "invlpg"}[name]
        return (load, f"call {call}", *(("check",) if name != "INVLPG" else ()))
    if name in ("RDMSR", "WRMSR") and not prefixes:
        return _msr_text(name, bits)
    if name in ("IN", "OUT") and not prefixes - {0x66} and not cs.rex:
        return _io_text(name, insn, 0x66 in prefixes)
    if name == "RDTSC" and not prefixes:
        return ("call read_tsc", *_split_result(bits))
    return None


def _io_text(name: str, insn: Insn, small: bool) -> tuple[str, ...]:
    _, r1, r2, r3 = _REGISTERS[insn.bits]
    opcode = insn.code[1 if small else 0]
    size = 1 if not opcode & 1 else 2 if small else 4
    port = f"movzx {r1}, dx" if opcode & 8 else f"mov {r1}, {insn.code[-1]:#x}"
    if name == "OUT":
        return (port, f"mov {r2}, {size:#x}", f"mov {r3}, {_REGISTERS[insn.bits][0]}", "call out")
    # The rest of RAX stays, but for a 32-bit value in 64-bit code.
    result = {1: "mov byte ptr [{SAVE0}], dl", 2: "mov word ptr [{SAVE0}], dx"}.get(
        size, f"mov {'qword' if insn.bits == 64 else 'dword'} ptr [{{SAVE0}}], {r3}")
    return (port, f"mov {r2}, {size:#x}", "call in", result)


def _memory(cs: Any, operand: Any) -> str:
    """The address expression of a memory operand, every number in hexadecimal."""
    mem = operand.mem
    parts = [cs.reg_name(mem.base)] if mem.base else []
    if mem.index:
        parts.append(f"{cs.reg_name(mem.index)}*{mem.scale:#x}")
    return " + ".join(parts) + (f" {'-' if mem.disp < 0 else '+'} {abs(mem.disp):#x}"
                                if mem.disp else "")


def _split_result(bits: int) -> tuple[str, ...]:
    """EDX:EAX from the second result, to be left in the places the registers are restored from."""
    if bits == 64:
        return ("mov qword ptr [{SAVE0}], rdx", "shr64", "mov qword ptr [{SAVE3}], rdx")
    return ("mov dword ptr [{SAVE0}], edx", "mov dword ptr [{SAVE3}], ecx")


def _msr_text(name: str, bits: int) -> tuple[str, ...]:
    if bits == 32:
        load = ("mov ebx, ecx",)
        if name == "WRMSR":
            return (*load, "mov ecx, eax", "call wrmsr", "check")
        return (*load, "call rdmsr", "check32", *_split_result(bits))
    if name == "WRMSR":
        return ("mov edi, ecx", "mov dword ptr [{COUNTER}], eax",
                "mov dword ptr [{COUNTER} + 4], edx", "mov rsi, qword ptr [{COUNTER}]",
                "call wrmsr", "check")
    return ("mov edi, ecx", "call rdmsr", "check", *_split_result(bits))


@cache
def _assemble(text: tuple[str, ...], bits: int, window: int) -> tuple[bytes, int]:
    """Machine code, and the offset of its INT3 (-1: none)."""
    registers = _REGISTERS[bits]
    wide = {64: "qword", 32: "dword"}[bits]
    restore = [f"mov {register}, {wide} ptr [{{{save}}}]"
               for register, save in zip(registers, _SAVES, strict=True)]
    lines = [f"mov {wide} ptr [{{{save}}}], {register}"
             for register, save in zip(registers, _SAVES, strict=True)]
    checked = False
    for line in text:
        if line.startswith("call "):
            lines += [f"mov eax, {pvabi.NUMBERS[line[5:]]:#x}", f"int {pvabi.VECTOR:#x}"]
        elif line == "check" and bits == 64:
            lines += ["xchg rax, rcx", "jrcxz good", "xchg rax, rcx", *restore, "int3",
                      "good: xchg rax, rcx"]
            checked = True
        elif line == "check":
            lines += ["mov ecx, eax", "jecxz good", *restore, "int3", "good: nop"]
            checked = True
        elif line == "check32":                     # ECX holds a result
            lines += ["xchg eax, ecx", "jecxz good", *restore, "int3", "good: xchg eax, ecx"]
            checked = True
        elif line == "shr64":                       # RDX = its high half, and no flag changed
            lines += ["mov edx, dword ptr [{SAVE0} + 4]"]
        else:
            lines.append(line)
    fields = {name: f"{window + getattr(vcpupage, name):#x}" for name in (*_SAVES, "COUNTER")}
    tail = [*restore]
    if text and "shr64" in text:
        # SAVE0 holds 64 bits of result; EAX is its low half.
        tail = [line.replace("mov rax, qword", "mov eax, dword") for line in tail]
    source = "\n".join(line.format_map(fields) for line in [*lines, *tail])
    mode = keystone.KS_MODE_64 if bits == 64 else keystone.KS_MODE_32
    code = bytes(keystone.Ks(keystone.KS_ARCH_X86, mode).asm(source)[0])
    offsets = [(at, mnemonic) for at, _, mnemonic, _ in disassembler(bits).disasm_lite(code, 0)]
    if len(offsets) != len(lines) + len(tail):
        raise AssertionError("a template became another number of instructions")
    slow = next((at for at, mnemonic in offsets if mnemonic == "int3"), -1)
    return code, slow if checked else -1
