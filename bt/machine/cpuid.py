# SPDX-License-Identifier: GPL-2.0-or-later
"""CPUID policy: what the virtual CPU says it is. Only what the vCPU really does is announced.

The model is an in-order Intel family 5. That is the truth that matters: Unicorn does not speculate,
and a kernel that knows it (Linux: NO_SPECULATION in arch/x86/kernel/cpu/common.c) leaves out the
retpolines, buffer clears and page-table splits that would guard against it. No command line is
needed for that.

Not announced although Unicorn could run it: AES, PCLMULQDQ (a kernel would spend its boot testing
them), XSAVE and AVX, SMEP/SMAP/UMIP, PCID. Leaf numbers and bits: SDM vol. 2, CPUID.
"""

from __future__ import annotations

import struct

TSC_HZ = 1_000_000_000
_CRYSTAL_HZ = 25_000_000

_FPU, _DE, _PSE, _TSC, _MSR, _PAE, _CX8 = (1 << n for n in (0, 2, 3, 4, 5, 6, 8))
_SEP, _PGE, _CMOV, _PAT, _PSE36, _CLFLUSH = (1 << n for n in (11, 13, 15, 16, 17, 19))
_MMX, _FXSR, _SSE, _SSE2 = (1 << n for n in (23, 24, 25, 26))
_LEAF1_EDX = (_FPU | _DE | _PSE | _TSC | _MSR | _PAE | _CX8 | _SEP | _PGE | _CMOV | _PAT | _PSE36
              | _CLFLUSH | _MMX | _FXSR | _SSE | _SSE2)
_SSE3, _SSSE3, _CX16, _SSE41, _SSE42, _MOVBE, _POPCNT, _HYPERVISOR = (
    1 << n for n in (0, 9, 13, 19, 20, 22, 23, 31))
_LEAF1_ECX = _SSE3 | _SSSE3 | _CX16 | _SSE41 | _SSE42 | _MOVBE | _POPCNT | _HYPERVISOR
_FSGSBASE, _TSC_ADJUST, _BMI1, _BMI2 = (1 << n for n in (0, 1, 3, 8))
_LEAF7_EBX = _FSGSBASE | _TSC_ADJUST | _BMI1 | _BMI2
_SYSCALL, _NX, _RDTSCP, _LM = (1 << n for n in (11, 20, 27, 29))
_EXT_EDX = _SYSCALL | _NX | _RDTSCP | _LM
_LAHF, _LZCNT = 1 << 0, 1 << 5
_EXT_ECX = _LAHF | _LZCNT
_CONSTANT_TSC = 1 << 8

# Family 5, model 4, stepping 3. (Not model 9: Linux takes PGE away from that one.)
_SIGNATURE = 0x0000_0543
_BRAND = b"Ring1 virtual CPU on Unicorn (in-order)".ljust(48, b"\0")

#: The VMM's own leaves: 0x40000000 names it, 0x40000001 gives its version.
HYPERVISOR_SIGNATURE = b"Ring1Ring1VM"

Leaf = tuple[int, int, int, int]


def _words(text: bytes) -> tuple[int, ...]:
    return struct.unpack(f"<{len(text) // 4}I", text)


def _vendor() -> Leaf:
    ebx, edx, ecx = _words(b"GenuineIntel")
    return 0x16, ebx, ecx, edx


def _hypervisor() -> Leaf:
    return 0x4000_0001, *_words(HYPERVISOR_SIGNATURE)  # type: ignore[return-value]


_LEAVES: dict[int, Leaf] = {
    0x0: _vendor(),
    0x1: (_SIGNATURE, 8 << 8, _LEAF1_ECX, _LEAF1_EDX),
    # TSC frequency = crystal * EBX / EAX.
    0x15: (1, TSC_HZ // _CRYSTAL_HZ, _CRYSTAL_HZ, 0),
    0x16: (TSC_HZ // 1_000_000, TSC_HZ // 1_000_000, _CRYSTAL_HZ // 1_000_000, 0),
    0x4000_0000: _hypervisor(),
    0x4000_0001: (0x0000_0100, 0, 0, 0),
    0x8000_0000: (0x8000_0008, 0, 0, 0),
    0x8000_0001: (0, 0, _EXT_ECX, _EXT_EDX),
    **{0x8000_0002 + i: _words(_BRAND[16 * i:16 * i + 16])  # type: ignore[misc]
       for i in range(3)},
    0x8000_0007: (0, 0, 0, _CONSTANT_TSC),
    0x8000_0008: (40 | 48 << 8, 0, 0, 0),
}
_NOTHING: Leaf = (0, 0, 0, 0)


def cpuid(leaf: int, subleaf: int) -> Leaf:
    """(EAX, EBX, ECX, EDX) for the 32-bit ``leaf`` and ``subleaf``; unknown leaves are zero."""
    if leaf == 7:
        return (0, _LEAF7_EBX, 0, 0) if subleaf == 0 else _NOTHING
    return _LEAVES.get(leaf, _NOTHING)


# With a local APIC ------------------------------------------------------------------------------

_APIC = 1 << 9
#: Leaf 6: the APIC's timer never stops. With it and leaf 0x15 Linux needs no 8254 at all.
_ARAT = 1 << 2

_APIC_LEAVES: dict[int, Leaf] = {
    **_LEAVES,
    0x1: (_SIGNATURE, 8 << 8 | 1 << 16, _LEAF1_ECX, _LEAF1_EDX | _APIC),
    0x6: (_ARAT, 0, 0, 0),
}


def apic_cpuid(leaf: int, subleaf: int) -> Leaf:
    """What CPUID gives on a board with APICs: one CPU whose APIC has ID 0."""
    if leaf == 7:
        return cpuid(leaf, subleaf)
    return _APIC_LEAVES.get(leaf, _NOTHING)


# Xen PV -----------------------------------------------------------------------------------------

#: What a PV domain does not get: page sizes and global pages (its page tables are checked entry by
#: entry), the fast system call of 32-bit code, and base registers it could change unseen.
_XEN_LEAF1_EDX = _LEAF1_EDX & ~(_PSE | _PSE36 | _PGE | _SEP | _DE)
_XEN_LEAF7_EBX = _LEAF7_EBX & ~(_FSGSBASE | _TSC_ADJUST)
XEN_VERSION = 4 << 16 | 17

_XEN_LEAVES: dict[int, Leaf] = {
    **_LEAVES,
    0x1: (_SIGNATURE, 8 << 8, _LEAF1_ECX, _XEN_LEAF1_EDX),
    # xen/include/public/arch-x86/cpuid.h
    0x4000_0000: (0x4000_0002, *_words(b"XenVMMXenVMM")),  # type: ignore[dict-item]
    0x4000_0001: (XEN_VERSION, 0, 0, 0),
    0x4000_0002: (1, 0x4000_0000, 0, 0),
}


def xen_cpuid(leaf: int, subleaf: int) -> Leaf:
    """What CPUID gives in a Xen PV domain."""
    if leaf == 7:
        return (0, _XEN_LEAF7_EBX, 0, 0) if subleaf == 0 else _NOTHING
    return _XEN_LEAVES.get(leaf, _NOTHING)
