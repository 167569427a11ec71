# SPDX-License-Identifier: GPL-2.0-or-later
"""AMD-V's exit codes: their names, and which are intercepted (AMD64 APM vol. 2, 15 and appendix C).

An intercept is named by the code of the #VMEXIT it causes, so a policy is a set of codes. The ones
in ``MINIMAL`` are always there: without them the guest would not be kept, or would see a CPU that
is not the one its CPUID describes. ``--intercept`` adds others, by the names in ``GROUPS``.
"""

from __future__ import annotations

import difflib

from bt.errors import InputError

_EXCEPTIONS = {
    0: "DE", 1: "DB", 2: "NMI", 3: "BP", 4: "OF", 5: "BR", 6: "UD", 7: "NM", 8: "DF", 10: "TS",
    11: "NP", 12: "SS", 13: "GP", 14: "PF", 16: "MF", 17: "AC", 18: "MC", 19: "XF",
}
_MISC = (
    "INTR NMI SMI INIT VINTR CR0_SEL_WRITE IDTR_READ GDTR_READ LDTR_READ TR_READ IDTR_WRITE "
    "GDTR_WRITE LDTR_WRITE TR_WRITE RDTSC RDPMC PUSHF POPF CPUID RSM IRET SWINT INVD PAUSE HLT "
    "INVLPG INVLPGA IOIO MSR TASK_SWITCH FERR_FREEZE SHUTDOWN VMRUN VMMCALL VMLOAD VMSAVE STGI "
    "CLGI SKINIT RDTSCP ICEBP WBINVD MONITOR MWAIT MWAIT_CONDITIONAL XSETBV").split()
NPF = 0x400

#: The manual's name of each exit code, without its "VMEXIT_".
EXIT_NAMES: dict[int, str] = {
    **{n: f"CR{n}_READ" for n in range(16)},
    **{0x10 + n: f"CR{n}_WRITE" for n in range(16)},
    **{0x20 + n: f"DR{n}_READ" for n in range(16)},
    **{0x30 + n: f"DR{n}_WRITE" for n in range(16)},
    **{0x40 + n: f"EXCP_{name}" for n, name in _EXCEPTIONS.items()},
    **{0x60 + n: name for n, name in enumerate(_MISC)},
    NPF: "NPF",
}
CODES: dict[str, int] = {name: code for code, name in EXIT_NAMES.items()}


def _codes(names: str) -> frozenset[int]:
    return frozenset(CODES[name] for name in names.split())


_DEBUG_REGISTERS = frozenset(range(0x20, 0x28)) | frozenset(range(0x30, 0x38))

#: CR0, CR4, EFER and other MSRs: values the CPU underneath would take and a real one refuses. CR3
#: and INVLPG: the CPU would forget its whole TLB, and the VMM's own would not hear of it. Debug
#: registers: breakpoints would be the host's. LTR: a TR without a TSS aborts QEMU. VMRUN and its
#: kin, MONITOR: instructions this CPU does not have. SHUTDOWN: the guest's end must not be ours.
MINIMAL = _DEBUG_REGISTERS | _codes(
    "CR0_WRITE CR3_WRITE CR4_WRITE CR8_READ CR8_WRITE VINTR IDTR_WRITE GDTR_WRITE LDTR_WRITE "
    "TR_WRITE RDTSC RDTSCP RDPMC CPUID HLT INVLPG IOIO MSR SHUTDOWN ICEBP "
    "VMRUN VMMCALL VMLOAD VMSAVE STGI CLGI SKINIT INVLPGA MONITOR MWAIT XSETBV")

#: What ``--intercept`` may name. Some are part of MINIMAL, and naming them changes nothing.
GROUPS: dict[str, frozenset[int]] = {
    "minimal": MINIMAL,
    "cpuid": _codes("CPUID"),
    "hlt": _codes("HLT"),
    "io": _codes("IOIO"),
    "msr": _codes("MSR"),
    "rdtsc": _codes("RDTSC RDTSCP"),
    "rdpmc": _codes("RDPMC"),
    "cr0": _codes("CR0_READ CR0_WRITE"),
    "cr2": _codes("CR2_READ CR2_WRITE"),
    "cr3": _codes("CR3_READ CR3_WRITE"),
    "cr4": _codes("CR4_READ CR4_WRITE"),
    "cr8": _codes("CR8_READ CR8_WRITE"),
    "dr": _DEBUG_REGISTERS,
    "tables": _codes("IDTR_READ GDTR_READ LDTR_READ TR_READ IDTR_WRITE GDTR_WRITE LDTR_WRITE "
                     "TR_WRITE"),
    "invlpg": _codes("INVLPG"),
    "wbinvd": _codes("WBINVD INVD"),
    "pushf": _codes("PUSHF"),
    "popf": _codes("POPF"),
    "iret": _codes("IRET"),
    "int": _codes("SWINT"),
    "pause": _codes("PAUSE"),
    "exceptions": frozenset(0x40 + n for n in _EXCEPTIONS if n != 2),
    "svm": _codes("VMRUN VMMCALL VMLOAD VMSAVE STGI CLGI SKINIT INVLPGA"),
}
for _vector, _name in _EXCEPTIONS.items():
    if _vector not in (2, 18):
        GROUPS["#" + _name.lower()] = frozenset({0x40 + _vector})
GROUPS["all"] = frozenset().union(*GROUPS.values())


def intercepts(policy: str) -> frozenset[int]:
    """The exit codes of a comma-separated list of GROUPS, MINIMAL added. Raises InputError."""
    codes = MINIMAL
    for name in policy.lower().split(","):
        name = name.strip()
        if name not in GROUPS:
            near = difflib.get_close_matches(name, GROUPS, 3, 0.5)
            hint = f"perhaps {' or '.join(near)}" if near else f"one of {', '.join(GROUPS)}"
            raise InputError(f"cannot intercept {name!r}: {hint}")
        codes |= GROUPS[name]
    return codes


#: Rows of the sensitive table that exit only when asked to: their codes. QEMU has one intercept for
#: INVD and WBINVD.
_ROW_CODES = {
    "PUSHF": "PUSHF", "POPF": "POPF", "IRET": "IRET", "PAUSE": "PAUSE", "WBINVD": "WBINVD",
    "INVD": "INVD WBINVD", "SGDT": "GDTR_READ", "SIDT": "IDTR_READ", "SLDT": "LDTR_READ",
    "STR": "TR_READ", "SMSW": "CR0_READ", "INT_N": "SWINT",
    "MOV_FROM_CR": "CR0_READ CR2_READ CR3_READ CR4_READ", "MOV_TO_CR": "CR2_WRITE",
}

#: Rows that AMD-V has no intercept for: in a guest these instructions just run. (A few of them the
#: VMM does where the CPU refuses them, which is no way to see them all.)
UNSEEN = frozenset((
    "CLI STI SWAPGS SYSRET SYSEXIT MOV_FROM_SEG MOV_TO_SEG PUSH_SEG POP_SEG LOAD_FAR_PTR FAR_CALL "
    "FAR_JMP FAR_RET LAR LSL VERR VERW STAC CLAC XGETBV RDPID INVPCID").split())


def for_row(row: str) -> frozenset[int]:
    """What to intercept, besides MINIMAL, to see an instruction (a row of the sensitive table).

    Empty for the ones that always exit. Raises InputError for those in UNSEEN.
    """
    if row in UNSEEN:
        raise InputError(f"engine hvm: AMD-V cannot intercept {row}")
    return _codes(_ROW_CODES.get(row, ""))


def name(code: int) -> str:
    """The manual's name of an exit code."""
    return f"VMEXIT_{EXIT_NAMES[code]}" if code in EXIT_NAMES else f"VMEXIT {code:#x}"
