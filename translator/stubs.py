# SPDX-License-Identifier: GPL-2.0-or-later
"""Inline emulation stubs: hot sensitive instructions done in place, with no exit to the VMM.

A stub does on the vCPU page what the instruction does on the CPU, then runs the absorbed
instructions and jumps back. It leaves every register and flag as the instruction would, and uses
no stack but the instruction's own.

**Restartable.** The VMM can find the vCPU in the middle of a stub: a stop at the start of one of
its basic blocks, or a fault of the instruction's own stack access. The guest must never see that
place, so each instruction of a stub where that can happen is a `Point`, which says how to leave:

- ``rollback``: nothing has happened yet for the guest. Undo, and RIP = the site.
- ``after``: the instruction is complete. RIP = ``orig``, the address of what comes next there.

In both, first take RCX from SAVE0 and RDX from SAVE1 as ``restore`` says, and add ``rsp`` to RSP.
A point of kind ``after`` with neither (``Point.clean``) is also a good place to *enter* the stub:
a VMM that must continue at its ``orig``, inside a replaced region, can continue there instead.

After POPF's rollback the arithmetic flags are lost: POPF is about to replace them.

**Slow paths.** Where a stub may not do the work (an interrupt waits to be let in, POPF sets TF...),
everything is restored and an INT3 runs, at an offset in ``slow_traps``: the VMM treats it as the
trap at the site, and continues at `Stub.resume` if the instruction does not branch.

The templates are assembled by keystone once for each vCPU page. A stub must not cross a page
boundary, so that the places a block can start stay those listed: leave `MAX_STUB` bytes.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import lru_cache

import keystone

from translator import vcpupage
from translator.rewriter import JUMP_LENGTH, ends_region, jump
from translator.scanner import disassembler

MAX_STUB = 160         # bytes: no stub is longer
RESTORE_RCX = 1        # bits of Point.restore
RESTORE_RDX = 2
PAGE = 0x1000

ROLLBACK = "rollback"
AFTER = "after"

# Bits of a POPF image that need the VMM: TF NT RF VM AC VIF VIP, and IOPL when it changes
# (SDM 1 section 3.4.3). ID and the arithmetic flags are left to the CPU.
_SLOW_FLAGS = 0x100 | 0x4000 | 0x1_0000 | 0x2_0000 | 0x4_0000 | 0x8_0000 | 0x10_0000 | 0x3000


@dataclass(frozen=True)
class Point:
    """A place in a stub where the VMM may find RIP (the instruction there has not run).

    offset: from the start of the stub; kind: ROLLBACK or AFTER; orig: the guest address to
    continue at; restore: RESTORE_* bits; rsp: bytes to add to RSP.
    """

    offset: int
    kind: str
    orig: int
    restore: int = 0
    rsp: int = 0

    @property
    def clean(self) -> bool:
        """Whether the guest's registers are all in place."""
        return self.kind == AFTER and not self.restore and not self.rsp


@dataclass(frozen=True)
class Stub:
    """An inline stub.

    code: to be placed at the stub address; slow_traps: offsets of its INT3 instructions; points:
    by rising offset; region: bytes replaced at the site; absorbed: number of instructions absorbed;
    resume: offset to continue at once the VMM has emulated the instruction itself.
    """

    code: bytes
    slow_traps: tuple[int, ...]
    points: tuple[Point, ...]
    region: int
    absorbed: int
    resume: int


@dataclass(frozen=True)
class _Line:
    """One instruction of a template, and the state before it runs (kind None: no stop there)."""

    text: str
    kind: str | None
    restore: int = 0
    rsp: int = 0


def _lines(*lines: tuple) -> tuple[_Line, ...]:
    return tuple(_Line(*line) for line in lines)


_RCX, _RDX = RESTORE_RCX, RESTORE_RDX
_BOTH = _RCX | _RDX

# In the templates {cx} and {dx} are RCX/RDX or ECX/EDX, {sp} likewise, {w} the operand size and
# {NAME} an absolute address in the vCPU page.
_CLI = _lines(
    ("mov dword ptr [{VIF}], 0", ROLLBACK),
)
_STI = _lines(
    ("mov {w} ptr [{SAVE0}], {cx}", ROLLBACK),
    ("mov {cx}, {w} ptr [{PENDING}]", ROLLBACK),
    ("{jcxz} fast", ROLLBACK, _RCX),
    ("mov {cx}, {w} ptr [{SAVE0}]", ROLLBACK, _RCX),
    ("int3", ROLLBACK),
    ("fast: mov dword ptr [{VIF}], 0x200", ROLLBACK, _RCX),
    ("mov {cx}, {w} ptr [{SAVE0}]", AFTER, _RCX),
)
# The flags are pushed first without IF and IOPL, then completed in memory: between the two, undoing
# means giving the stack slot back. LEA adds without changing a flag, and nothing carries because
# the real IF and IOPL are 0.
_PUSHF = _lines(
    ("mov {w} ptr [{SAVE0}], {cx}", ROLLBACK),
    ("mov {w} ptr [{SAVE1}], {dx}", ROLLBACK),
    ("mov {dx}, {w} ptr [{VIF}]", ROLLBACK),
    ("mov {cx}, {w} ptr [{VIOPL}]", ROLLBACK, _RDX),
    ("lea {dx}, [{dx} + {cx}]", ROLLBACK, _BOTH),
    ("{pushf}", ROLLBACK, _BOTH),
    ("mov {cx}, {w} ptr [{sp}]", ROLLBACK, _BOTH, +1),
    ("lea {cx}, [{cx} + {dx}]", ROLLBACK, _BOTH, +1),
    ("mov {w} ptr [{sp}], {cx}", ROLLBACK, _BOTH, +1),
    ("mov {cx}, {w} ptr [{SAVE0}]", AFTER, _BOTH),
    ("mov {dx}, {w} ptr [{SAVE1}]", AFTER, _RDX),
)
# The stack is read before any flag changes, so that its fault is POPF's own. PENDING is 0 or IF:
# one TEST with the image says whether an interrupt would be let in. VIF is written after the native
# POPF, which ends a block: redoing POPF from the same slot is exact, redoing VIF would not be.
_POPF = _lines(
    ("mov {w} ptr [{SAVE0}], {cx}", ROLLBACK),
    ("mov {cx}, {w} ptr [{sp}]", ROLLBACK),
    ("xor ecx, dword ptr [{VIOPL}]", ROLLBACK, _RCX),
    (f"test ecx, {_SLOW_FLAGS:#x}", ROLLBACK, _RCX),
    ("jnz slow", ROLLBACK, _RCX),
    ("test dword ptr [{PENDING}], ecx", ROLLBACK, _RCX),
    ("jz fast", ROLLBACK, _RCX),
    ("slow: mov {cx}, {w} ptr [{SAVE0}]", ROLLBACK, _RCX),
    ("int3", ROLLBACK),
    ("fast: and ecx, 0x200", ROLLBACK, _RCX),
    ("{popf}", ROLLBACK, _RCX),
    ("mov dword ptr [{VIF}], ecx", ROLLBACK, _RCX, -1),
    ("mov {cx}, {w} ptr [{SAVE0}]", AFTER, _RCX),
)
# Between the two writes of the exchange there is neither a block start nor a possible fault.
_SWAPGS = _lines(
    ("mov qword ptr [{SAVE0}], rcx", ROLLBACK),
    ("mov qword ptr [{SAVE1}], rdx", ROLLBACK),
    ("rdgsbase rcx", ROLLBACK),
    ("mov rdx, qword ptr [{KGSBASE}]", ROLLBACK, _RCX),
    ("wrgsbase rdx", ROLLBACK, _BOTH),
    ("mov qword ptr [{KGSBASE}], rcx", None),
    ("mov rcx, qword ptr [{SAVE0}]", AFTER, _BOTH),
    ("mov rdx, qword ptr [{SAVE1}]", AFTER, _RDX),
)

_REGISTERS = {
    64: ("rax rcx rdx rbx rsp rbp rsi rdi r8 r9 r10 r11 r12 r13 r14 r15").split(),
    32: ("eax ecx edx ebx esp ebp esi edi r8d r9d r10d r11d r12d r13d r14d r15d").split(),
    16: ("ax cx dx bx sp bp si di r8w r9w r10w r11w r12w r13w r14w r15w").split(),
}


def _load(field: str, register: int, width: int, bits: int) -> tuple[_Line, ...]:
    """One load from the vCPU page. ``width``: of the destination, bits; 64 only in 64-bit code."""
    size = {16: "word", 32: "dword", 64: "qword"}[min(width, bits)]
    name = _REGISTERS[min(width, bits)][register]
    return _lines((f"mov {name}, {size} ptr [{{{field}}}]", ROLLBACK))


# Prefixes other than these change what an instruction does, or are not worth a stub.
_MOV = re.compile(rb"(?P<small>\x66?)(?P<rex>[\x40-\x4f]?)(?P<op>\x8c|\x0f\x20)(?P<modrm>.)\Z",
                  re.DOTALL)


def _template(row_name: str, insn: bytes, bits: int) -> tuple[_Line, ...] | None:
    """The template for an instruction, or None where there is none for this form."""
    fixed = {"CLI": (b"\xfa", _CLI), "STI": (b"\xfb", _STI), "PUSHF": (b"\x9c", _PUSHF),
             "POPF": (b"\x9d", _POPF)}
    if row_name in fixed:
        opcode, lines = fixed[row_name]
        return lines if insn == opcode or (bits == 64 and insn == b"\x48" + opcode) else None
    if row_name == "SWAPGS":
        return _SWAPGS if bits == 64 and insn == b"\x0f\x01\xf8" else None
    if row_name == "PUSH_SEG" and bits == 32 and insn in (b"\x0e", b"\x16"):
        return _lines((f"push dword ptr [{{{'CS' if insn == bytes([0x0e]) else 'SS'}}}]",
                       ROLLBACK))
    match = _MOV.match(insn)
    if match is None or (bits == 32 and match["rex"]):
        return None
    rex = match["rex"][0] if match["rex"] else 0
    modrm = match["modrm"][0]
    register = modrm & 7 | (rex & 1) << 3
    selector = (modrm >> 3 & 7) | (rex & 4) << 1
    if row_name == "MOV_FROM_CR" and match["op"] == b"\x0f\x20":
        # Operand-size prefixes and the mod field do not matter here.
        field = {0: "CR0", 2: "CR2", 3: "CR3", 4: "CR4"}.get(selector)
        return _load(field, register, bits, bits) if field else None
    if row_name == "MOV_FROM_SEG" and match["op"] == b"\x8c" and modrm >= 0xC0:
        field = {1: "CS", 2: "SS"}.get(modrm >> 3 & 7)
        width = 64 if rex & 8 else 16 if match["small"] else 32
        return _load(field, register, width, bits) if field else None
    return None


@lru_cache(maxsize=1024)
def _assemble(lines: tuple[_Line, ...], vcpu: int, bits: int) -> tuple[bytes, tuple[int, ...]]:
    """Machine code of a template and the offset of each of its lines."""
    names = {name: f"{vcpu + getattr(vcpupage, name):#x}" for name in (
        "VIF", "PENDING", "SAVE0", "SAVE1", "KGSBASE", "CS", "SS", "CR0", "CR2", "CR3", "CR4",
        "VIOPL")}
    if bits == 64:
        names |= {"w": "qword", "cx": "rcx", "dx": "rdx", "sp": "rsp", "jcxz": "jrcxz",
                  "pushf": "pushfq", "popf": "popfq"}
        mode = keystone.KS_MODE_64
    else:
        names |= {"w": "dword", "cx": "ecx", "dx": "edx", "sp": "esp", "jcxz": "jecxz",
                  "pushf": "pushfd", "popf": "popfd"}
        mode = keystone.KS_MODE_32
    text = "\n".join(line.text.format_map(names) for line in lines)
    code = bytes(keystone.Ks(keystone.KS_ARCH_X86, mode).asm(text)[0])
    offsets = tuple(at for at, _, _, _ in disassembler(bits).disasm_lite(code, 0))
    if len(offsets) != len(lines):
        raise AssertionError(f"template of {len(lines)} lines became {len(offsets)} instructions")
    return code, offsets


def make_stub(row_name: str, insn: bytes, absorbed: tuple[bytes, ...] | list[bytes],
              site_address: int, stub_address: int, vcpu_address: int,
              bits: int = 64) -> Stub | None:
    """Builds the stub for one site, or None if there is none for this instruction or distance.

    insn, absorbed: as in `rewriter.StubPlan`; site_address: of the instruction; stub_address: where
    the stub will be; vcpu_address: of the vCPU page (`vcpupage.reachable`). 32-bit stubs address
    the page through DS, whose base must be 0, and SS.  ValueError if the stub would cross a page
    boundary or the vCPU page is out of reach.
    """
    if bits not in (32, 64):
        return None
    if not vcpupage.reachable(vcpu_address, bits):
        raise ValueError(f"vCPU page {vcpu_address:#x} is out of reach of {bits}-bit stubs")
    lines = _template(row_name, insn, bits)
    if lines is None:
        return None
    code, offsets = _assemble(lines, vcpu_address, bits)
    next_address = site_address + len(insn)
    points = []
    for line, offset in zip(lines, offsets, strict=True):
        if line.kind is not None:
            points.append(Point(offset, line.kind,
                                site_address if line.kind == ROLLBACK else next_address,
                                line.restore, line.rsp * bits // 8))
    traps = tuple(offset for line, offset in zip(lines, offsets, strict=True)
                  if line.text == "int3")
    resume = len(code)
    falls_through = True
    for piece in absorbed:
        points.append(Point(len(code), AFTER, next_address))
        target = ends_region(piece, next_address, bits)
        if target is not None and len(piece) > 1:       # a JMP: it needs a new displacement
            far = jump(stub_address + len(code), target, bits)
            if far is None:
                return None
            code += far
        else:
            code += piece
        falls_through = target is None
        next_address += len(piece)
    if falls_through:
        points.append(Point(len(code), AFTER, next_address))
        back = jump(stub_address + len(code), next_address, bits)
        if back is None:
            return None
        code += back
    if jump(site_address, stub_address, bits) is None:
        return None
    if stub_address % PAGE + len(code) > PAGE:
        raise ValueError(f"stub of {len(code)} bytes at {stub_address:#x} crosses a page boundary")
    region = max(JUMP_LENGTH, next_address - site_address)
    return Stub(code, traps, tuple(points), region, len(absorbed), resume)
