# SPDX-License-Identifier: GPL-2.0-or-later
"""The table of sensitive x86 instructions: one place, which drives scanner, docs and tests.

An instruction is here because a kernel that runs one ring down must not execute it as it is:

``sensitive``
    It runs at any privilege level without a fault but shows or changes state that is not the
    guest's (POPF quietly keeps IF, SMSW shows the real CR0, ``mov ax, cs`` shows the real ring).
    These are the holes of J. Robin and C. Irvine, "Analysis of the Intel Pentium's Ability to
    Support a Secure Virtual Machine Monitor", USENIX Security 2000.
``privileged``
    It faults outside ring 0. It would work without translation, one fault each.
``wanted``
    It is harmless, but the answer belongs to the VMM (CPUID, RDTSC).

Not in the table, although they touch segment registers: MOV from DS/ES/FS/GS, PUSH of them, and
ARPL. The vCPU holds the selectors the guest loaded, unchanged, in those four; only CS and SS carry
the real ring in their low bits. ARPL works on two operands and sees no hidden state. Instructions
of features that the vCPU does not have (SVM, VMX, XSAVES, UMONITOR...) raise #UD by themselves.

``source`` names a chapter of the Intel 64 and IA-32 Architectures Software Developer's Manual,
volume 2 (SDM 2), or of the AMD64 Architecture Programmer's Manual, volume 3 (APM 3).
"""

from __future__ import annotations

from dataclasses import dataclass, field

ALL = frozenset({16, 32, 64})
LEGACY = frozenset({16, 32})
LONG = frozenset({64})
PROTECTED = frozenset({32, 64})


@dataclass(frozen=True)
class Enc:
    """One encoding: an opcode and what the ModRM byte must hold.

    map: 0 = one-byte opcodes, 1 = after 0F, 2 = after 0F 38.
    reg: values the ModRM reg field may have; None = there is no condition on it.
    mod: "mem" (mod != 3), "reg" (mod == 3) or "any"; ignored without ModRM.
    rm: the one value of the ModRM rm field, or None.
    prefix: mandatory prefix (0x66, 0xF2, 0xF3), or None where prefixes do not matter.
    modrm: the instruction has a ModRM byte.
    no_rex_b: REX.B makes it another instruction (PAUSE: xchg r8d, eax).
    modes: code sizes in bits in which the encoding exists.
    """

    map: int
    opcode: int
    reg: tuple[int, ...] | None = None
    mod: str = "any"
    rm: int | None = None
    prefix: int | None = None
    modrm: bool = False
    no_rex_b: bool = False
    modes: frozenset[int] = ALL

    def __str__(self) -> str:
        text = f"{self.prefix:02X} " if self.prefix else ""
        text += ("", "0F ", "0F 38 ")[self.map] + f"{self.opcode:02X}"
        if self.rm is not None and self.reg is not None:
            return text + f" {0xC0 | self.reg[0] << 3 | self.rm:02X}"
        if self.reg is not None:
            text += " /" + ",".join(map(str, self.reg))
        if self.modrm and self.mod != "any":
            text += f" {self.mod}"
        return text


@dataclass(frozen=True)
class Row:
    """One instruction (or family that a VMM handles alike).

    id: index in TABLE, also the ``row`` of a finding; below 256.
    instr_class: "sensitive", "privileged" or "wanted" (see above).
    category: the kind of state it is about.
    encodings: every way to write it.
    kernel: translated in code that the guest means to run in ring 0.
    user: translated in ring 3 code too, where the answer belongs to the VMM there as well.
    traps: by the manual it faults at CPL 1 with IOPL 0, so that an untranslated one is noticed.
    reads, writes: names of the virtual CPU state involved; IF, IOPL and CPL are named apart from
        the other flags.
    source: where the manuals describe it.
    """

    id: int
    name: str
    instr_class: str
    category: str
    encodings: tuple[Enc, ...]
    kernel: bool
    user: bool
    traps: bool
    reads: tuple[str, ...]
    writes: tuple[str, ...]
    source: str
    modes: frozenset[int] = field(init=False)

    def __post_init__(self) -> None:
        modes = frozenset().union(*(encoding.modes for encoding in self.encodings))
        object.__setattr__(self, "modes", modes)


_rows: list[Row] = []


def _row(name: str, instr_class: str, category: str, *encodings: Enc, reads: str = "",
         writes: str = "", kernel: bool = True, user: bool = False, traps: bool | None = None,
         source: str | None = None) -> None:
    """Appends a row; ``traps`` is true for privileged instructions unless told otherwise."""
    _rows.append(Row(
        id=len(_rows), name=name, instr_class=instr_class, category=category,
        encodings=encodings, kernel=kernel, user=user,
        traps=instr_class == "privileged" if traps is None else traps,
        reads=tuple(reads.split()), writes=tuple(writes.split()),
        source=source or f"SDM 2 {name}"))


def _op(*opcodes: int, modes: frozenset[int] = ALL) -> tuple[Enc, ...]:
    """One-byte opcodes without ModRM."""
    return tuple(Enc(0, opcode, modes=modes) for opcode in opcodes)


def _0f(*opcodes: int, modes: frozenset[int] = ALL) -> tuple[Enc, ...]:
    """0F opcodes without ModRM."""
    return tuple(Enc(1, opcode, modes=modes) for opcode in opcodes)


def _group(map: int, opcode: int, *reg: int, mod: str = "any", rm: int | None = None,
           prefix: int | None = None, modes: frozenset[int] = ALL) -> Enc:
    """An opcode with a ModRM byte, narrowed by its fields (no ``reg`` = any)."""
    return Enc(map, opcode, reg or None, mod, rm, prefix, True, modes=modes)


def _0f01(modrm: int, modes: frozenset[int] = ALL) -> Enc:
    """0F 01 with one whole ModRM byte as the rest of the opcode."""
    return _group(1, 0x01, modrm >> 3 & 7, mod="reg", rm=modrm & 7, modes=modes)


# -- interrupt flag ----------------------------------------------------------------------------
_row("CLI", "privileged", "interrupt flag", *_op(0xFA), reads="IOPL CPL", writes="IF")
_row("STI", "privileged", "interrupt flag", *_op(0xFB), reads="IOPL CPL", writes="IF shadow")
_row("PUSHF", "sensitive", "interrupt flag", *_op(0x9C), reads="flags IF IOPL",
     source="SDM 2 PUSHF/PUSHFD/PUSHFQ")
_row("POPF", "sensitive", "interrupt flag", *_op(0x9D), reads="IOPL CPL", writes="flags IF IOPL",
     source="SDM 2 POPF/POPFD/POPFQ")
_row("IRET", "sensitive", "control transfer", *_op(0xCF), reads="CPL IOPL",
     writes="CS SS CPL flags IF IOPL", source="SDM 2 IRET/IRETD/IRETQ")
_row("HLT", "privileged", "interrupt flag", *_op(0xF4), reads="IF CPL")

# -- descriptor tables -------------------------------------------------------------------------
_row("SGDT", "sensitive", "descriptor tables", _group(1, 0x01, 0, mod="mem"), reads="GDTR",
     user=True)
_row("SIDT", "sensitive", "descriptor tables", _group(1, 0x01, 1, mod="mem"), reads="IDTR",
     user=True)
_row("SLDT", "sensitive", "descriptor tables", _group(1, 0x00, 0), reads="LDTR", user=True)
_row("STR", "sensitive", "descriptor tables", _group(1, 0x00, 1), reads="TR", user=True)
_row("LGDT", "privileged", "descriptor tables", _group(1, 0x01, 2, mod="mem"), reads="CPL",
     writes="GDTR", source="SDM 2 LGDT/LIDT")
_row("LIDT", "privileged", "descriptor tables", _group(1, 0x01, 3, mod="mem"), reads="CPL",
     writes="IDTR", source="SDM 2 LGDT/LIDT")
_row("LLDT", "privileged", "descriptor tables", _group(1, 0x00, 2), reads="GDT CPL",
     writes="LDTR")
_row("LTR", "privileged", "descriptor tables", _group(1, 0x00, 3), reads="GDT CPL",
     writes="TR GDT")
_row("LAR", "sensitive", "descriptor tables", _group(1, 0x02), reads="GDT LDT CPL", writes="ZF",
     user=True)
_row("LSL", "sensitive", "descriptor tables", _group(1, 0x03), reads="GDT LDT CPL", writes="ZF",
     user=True)
_row("VERR", "sensitive", "descriptor tables", _group(1, 0x00, 4), reads="GDT LDT CPL",
     writes="ZF", user=True, source="SDM 2 VERR/VERW")
_row("VERW", "sensitive", "descriptor tables", _group(1, 0x00, 5), reads="GDT LDT CPL",
     writes="ZF", user=True, source="SDM 2 VERR/VERW")

# -- segment registers -------------------------------------------------------------------------
_row("MOV_FROM_SEG", "sensitive", "segment registers", _group(0, 0x8C, 1, 2), reads="CS SS",
     source="SDM 2 MOV")
_row("MOV_TO_SEG", "sensitive", "segment registers", _group(0, 0x8E, 0, 2, 3, 4, 5),
     reads="GDT LDT CPL", writes="ES SS DS FS GS shadow", source="SDM 2 MOV")
_row("PUSH_SEG", "sensitive", "segment registers", *_op(0x0E, 0x16, modes=LEGACY), reads="CS SS",
     source="SDM 2 PUSH")
_row("POP_SEG", "sensitive", "segment registers", *_op(0x07, 0x17, 0x1F, modes=LEGACY),
     *_0f(0xA1, 0xA9), reads="GDT LDT CPL", writes="ES SS DS FS GS shadow", source="SDM 2 POP")
# C4 and C5 with mod = 3, and always in 64-bit code, are VEX prefixes.
_row("LOAD_FAR_PTR", "sensitive", "segment registers",
     _group(0, 0xC4, mod="mem", modes=LEGACY), _group(0, 0xC5, mod="mem", modes=LEGACY),
     *(_group(1, opcode, mod="mem") for opcode in (0xB2, 0xB4, 0xB5)),
     reads="GDT LDT CPL", writes="ES SS DS FS GS", source="SDM 2 LDS/LES/LFS/LGS/LSS")
_row("SWAPGS", "privileged", "segment registers", _0f01(0xF8, LONG), reads="KERNEL_GS_BASE CPL",
     writes="GS_BASE KERNEL_GS_BASE")

# -- control and debug registers ---------------------------------------------------------------
_row("SMSW", "sensitive", "control registers", _group(1, 0x01, 4), reads="CR0", user=True)
_row("LMSW", "privileged", "control registers", _group(1, 0x01, 6), reads="CPL", writes="CR0")
_row("CLTS", "privileged", "control registers", *_0f(0x06), reads="CPL", writes="CR0")
# The mod field of these four is ignored: the operand is always a register.
_row("MOV_FROM_CR", "privileged", "control registers", _group(1, 0x20),
     reads="CR0 CR2 CR3 CR4 CR8 CPL", source="SDM 2 MOV - Move to/from Control Registers")
_row("MOV_TO_CR", "privileged", "control registers", _group(1, 0x22), reads="CPL",
     writes="CR0 CR2 CR3 CR4 CR8 TLB", source="SDM 2 MOV - Move to/from Control Registers")
_row("MOV_FROM_DR", "privileged", "debug registers", _group(1, 0x21), reads="DR DR7 CPL",
     source="SDM 2 MOV - Move to/from Debug Registers")
_row("MOV_TO_DR", "privileged", "debug registers", _group(1, 0x23), reads="DR7 CPL", writes="DR",
     source="SDM 2 MOV - Move to/from Debug Registers")
_row("STAC", "privileged", "control registers", _0f01(0xCB), reads="CPL CR4", writes="AC")
_row("CLAC", "privileged", "control registers", _0f01(0xCA), reads="CPL CR4", writes="AC")
_row("XGETBV", "wanted", "control registers", _0f01(0xD0), reads="XCR0 CR4", user=True)
_row("XSETBV", "privileged", "control registers", _0f01(0xD1), reads="CPL CR4", writes="XCR0",
     user=True)

# -- model-specific registers, time, identity --------------------------------------------------
_row("RDMSR", "privileged", "msr", *_0f(0x32), reads="MSR CPL")
_row("WRMSR", "privileged", "msr", *_0f(0x30), reads="CPL", writes="MSR")
_row("RDPMC", "privileged", "msr", *_0f(0x33), reads="PMC CR4 CPL", user=True)
_row("RDTSC", "wanted", "time", *_0f(0x31), reads="TSC CR4")
_row("RDTSCP", "wanted", "time", _0f01(0xF9), reads="TSC TSC_AUX CR4")
_row("RDPID", "wanted", "identity", _group(1, 0xC7, 7, mod="reg", prefix=0xF3), reads="TSC_AUX",
     user=True)
_row("CPUID", "wanted", "identity", *_0f(0xA2), reads="CPUID CR4", user=True)

# -- caches and the TLB ------------------------------------------------------------------------
_row("INVLPG", "privileged", "cache/tlb", _group(1, 0x01, 7, mod="mem"), reads="CPL",
     writes="TLB")
# 16-bit protected-mode code may use INVPCID too, but capstone cannot decode it there.
_row("INVPCID", "privileged", "cache/tlb",
     _group(2, 0x82, mod="mem", prefix=0x66, modes=PROTECTED), reads="CPL CR4", writes="TLB")
_row("WBINVD", "privileged", "cache/tlb", *_0f(0x09), reads="CPL",
     source="SDM 2 WBINVD, WBNOINVD")
_row("INVD", "privileged", "cache/tlb", *_0f(0x08), reads="CPL")

# -- input and output --------------------------------------------------------------------------
_row("IN", "privileged", "io", *_op(0xE4, 0xE5, 0xEC, 0xED), reads="IOPL CPL TSS ports",
     user=True)
_row("OUT", "privileged", "io", *_op(0xE6, 0xE7, 0xEE, 0xEF), reads="IOPL CPL TSS",
     writes="ports", user=True)
_row("INS", "privileged", "io", *_op(0x6C, 0x6D), reads="IOPL CPL TSS ports", user=True,
     source="SDM 2 INS/INSB/INSW/INSD")
_row("OUTS", "privileged", "io", *_op(0x6E, 0x6F), reads="IOPL CPL TSS", writes="ports",
     user=True, source="SDM 2 OUTS/OUTSB/OUTSW/OUTSD")

# -- waiting -----------------------------------------------------------------------------------
_row("MONITOR", "privileged", "waiting", _0f01(0xC8), reads="CPL")
_row("MWAIT", "privileged", "waiting", _0f01(0xC9), reads="CPL IF")
# A VMM may want it to see spin loops; it costs a trap each, so it is not selected by itself.
_row("PAUSE", "wanted", "waiting", Enc(0, 0x90, prefix=0xF3, no_rex_b=True), kernel=False)

# -- control transfer --------------------------------------------------------------------------
_row("FAR_CALL", "sensitive", "control transfer", *_op(0x9A, modes=LEGACY),
     _group(0, 0xFF, 3, mod="mem"), reads="GDT LDT CPL CS", writes="CS SS CPL",
     source="SDM 2 CALL")
_row("FAR_JMP", "sensitive", "control transfer", *_op(0xEA, modes=LEGACY),
     _group(0, 0xFF, 5, mod="mem"), reads="GDT LDT CPL", writes="CS CPL", source="SDM 2 JMP")
_row("FAR_RET", "sensitive", "control transfer", *_op(0xCA, 0xCB), reads="GDT LDT CPL",
     writes="CS SS CPL", source="SDM 2 RET")
_row("INT_N", "sensitive", "control transfer", *_op(0xCD), reads="IDT GDT CPL IOPL",
     writes="CS SS CPL flags IF", source="SDM 2 INT n/INTO/INT3/INT1")
# The next five reach a VMM by themselves: as an interrupt or through the entry MSRs.
_row("INT3", "sensitive", "control transfer", *_op(0xCC), reads="IDT GDT CPL", kernel=False,
     writes="CS SS CPL flags IF", traps=True, source="SDM 2 INT n/INTO/INT3/INT1")
_row("INT1", "sensitive", "control transfer", *_op(0xF1), reads="IDT GDT CPL", user=True,
     writes="CS SS CPL flags IF", source="SDM 2 INT n/INTO/INT3/INT1")
_row("INTO", "sensitive", "control transfer", *_op(0xCE, modes=LEGACY), reads="IDT GDT CPL OF",
     writes="CS SS CPL flags IF", kernel=False, traps=True,
     source="SDM 2 INT n/INTO/INT3/INT1")
_row("SYSCALL", "sensitive", "control transfer", *_0f(0x05), kernel=False, traps=True,
     reads="STAR LSTAR FMASK EFER", writes="CS SS CPL flags IF RIP")
_row("SYSENTER", "sensitive", "control transfer", *_0f(0x34), kernel=False, traps=True,
     reads="SYSENTER_CS SYSENTER_ESP SYSENTER_EIP", writes="CS SS CPL IF RIP RSP")
# AMD has SYSRET in legacy protected mode too.
_row("SYSRET", "privileged", "control transfer", *_0f(0x07), reads="STAR EFER CPL",
     writes="CS SS CPL flags IF IOPL RIP", source="SDM 2 SYSRET; APM 3 SYSRET")
_row("SYSEXIT", "privileged", "control transfer", *_0f(0x35), reads="SYSENTER_CS CPL",
     writes="CS SS CPL RIP RSP")

# -- calls to a hypervisor: #UD without one, so they come by themselves ----------------------------
_row("VMCALL", "wanted", "hypercall", _0f01(0xC1), kernel=False, traps=True,
     source="SDM 3 VMCALL")
_row("VMMCALL", "wanted", "hypercall", _0f01(0xD9), kernel=False, traps=True,
     source="APM 3 VMMCALL")

TABLE: tuple[Row, ...] = tuple(_rows)
BY_NAME: dict[str, Row] = {row.name: row for row in TABLE}


def markdown() -> str:
    """The table as a Markdown table, for the documentation."""
    lines = ["| instruction | class | category | encodings | modes | translated | faults at CPL 1 "
             "| reads | writes | source |", "|" + "---|" * 10]
    for row in TABLE:
        where = [name for name, on in (("kernel", row.kernel), ("user", row.user)) if on]
        lines.append("| " + " | ".join([
            f"`{row.name}`", row.instr_class, row.category,
            ", ".join(f"`{encoding}`" for encoding in row.encodings),
            " ".join(str(bits) for bits in sorted(row.modes)), ", ".join(where) or "no",
            "yes" if row.traps else "no", " ".join(row.reads), " ".join(row.writes),
            row.source]) + " |")
    return "\n".join(lines) + "\n"
