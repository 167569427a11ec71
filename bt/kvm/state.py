# SPDX-License-Identifier: GPL-2.0-or-later
"""A vCPU's registers: set for a guest's first instruction, and read for people."""

from __future__ import annotations

from fcntl import ioctl
from typing import NamedTuple

from bt.boot.entry import EntryState
from bt.kvm import abi

CR0_PE, CR0_ET, CR0_PG = 1, 1 << 4, 1 << 31
CR4_PAE = 1 << 5
EFER_LME, EFER_LMA = 1 << 8, 1 << 10
MSR_STAR, MSR_LSTAR, MSR_FMASK = 0xC000_0081, 0xC000_0082, 0xC000_0084
MSR_KERNEL_GS_BASE = 0xC000_0102
_APIC_BASE, _APIC_ENABLE = 0xFEE0_0100, 1 << 11     # of the boot processor
_RFLAGS_FIXED = 2
_RFLAGS_WRITABLE, _RFLAGS_IOPL = 0x24_4FD5, 3 << 12
_CODE, _DATA = 11, 3        # segment types: execute/read and read/write, accessed (SDM 3A, 3.4.5.1)
_FLAT = 0xFFFF_FFFF


class Segment(NamedTuple):
    """struct kvm_segment's fields; ``limit`` is in bytes."""

    base: int
    limit: int
    selector: int
    type: int
    present: int
    dpl: int
    db: int
    s: int
    l: int  # noqa: E741, the field's name
    g: int
    avl: int
    unusable: int


def flat_code(selector: int) -> Segment:
    """64-bit code at privilege level 0, as SYSCALL and gates load it."""
    return Segment(0, _FLAT, selector, _CODE, 1, 0, 0, 1, 1, 1, 0, 0)


def flat_data(selector: int) -> Segment:
    """A stack or data segment at privilege level 0; selector 0 is what 64-bit gates load."""
    return Segment(0, _FLAT, selector, _DATA, 1, 0, 1, 1, 0, 1, 0, 0)


class SpecialRegisters:
    """struct kvm_sregs, read from a vCPU and written back as a whole."""

    def __init__(self, cpu: int) -> None:
        self._cpu = cpu
        self._data = bytearray(abi.SREGS_SIZE)
        ioctl(cpu, abi.KVM_GET_SREGS, self._data)

    def segment(self, name: str) -> Segment:
        at = abi.SEGMENTS.index(name) * abi.SEGMENT.size
        return Segment(*abi.SEGMENT.unpack_from(self._data, at))

    def set_segment(self, name: str, segment: Segment) -> None:
        at = abi.SEGMENTS.index(name) * abi.SEGMENT.size
        abi.SEGMENT.pack_into(self._data, at, *segment)

    def table(self, at: int) -> tuple[int, int]:
        """(base, limit) of the GDT or IDT: ``at`` is abi.SREGS_GDT or _IDT."""
        base, limit = abi.DTABLE.unpack_from(self._data, at)
        return base, limit

    def set_table(self, at: int, base: int, limit: int) -> None:
        abi.DTABLE.pack_into(self._data, at, base, limit)

    @property
    def control(self) -> dict[str, int]:
        """CR0, CR2, CR3, CR4, CR8, EFER and the APIC's base, by name."""
        words = abi.CONTROL.unpack_from(self._data, abi.SREGS_CONTROL)
        return dict(zip(abi.CONTROLS, words, strict=True))

    def set_control(self, **values: int) -> None:
        words = self.control | values
        abi.CONTROL.pack_into(self._data, abi.SREGS_CONTROL, *words.values())

    def write(self) -> None:
        ioctl(self._cpu, abi.KVM_SET_SREGS, self._data)


def general(cpu: int) -> dict[str, int]:
    """The 16 general registers, rip and rflags."""
    data = bytearray(abi.REGISTERS.size)
    ioctl(cpu, abi.KVM_GET_REGS, data)
    return dict(zip(abi.REGS, abi.REGISTERS.unpack(data), strict=True))


def set_general(cpu: int, values: dict[str, int]) -> None:
    """Set all 18; those not named are 0."""
    ioctl(cpu, abi.KVM_SET_REGS, abi.REGISTERS.pack(*(values.get(name, 0) for name in abi.REGS)))


def read_msr(cpu: int, index: int) -> int:
    """An MSR's value; 0 if this KVM does not have it."""
    data = bytearray(abi.ONE_MSR.pack(1, 0, index, 0, 0))
    if ioctl(cpu, abi.KVM_GET_MSRS, data) != 1:
        return 0
    value: int = abi.ONE_MSR.unpack(data)[4]
    return value


def write_msr(cpu: int, index: int, value: int) -> bool:
    """Set an MSR; whether this KVM took the value."""
    data = bytearray(abi.ONE_MSR.pack(1, 0, index, 0, value))
    return ioctl(cpu, abi.KVM_SET_MSRS, data) == 1


def enter(cpu: int, entry: EntryState, *, apic: bool) -> None:
    """Put a vCPU at a guest's first instruction (bt/boot/entry.py).

    ``apic``: there is a local APIC. KVM lets CPUID say what IA32_APIC_BASE does.
    """
    bits = entry.bits
    special = SpecialRegisters(cpu)
    for name in ("cs", "ds", "es", "fs", "gs", "ss"):
        code = name == "cs"
        selector = entry.cs if code else entry.ds
        special.set_segment(name, Segment(
            base=selector << 4 if bits == 16 else 0, limit=0xFFFF if bits == 16 else _FLAT,
            selector=selector, type=_CODE if code else _DATA, present=1, dpl=0,
            db=int(bits == 32 or (bits == 64 and not code)), s=1, l=int(bits == 64 and code),
            g=int(bits != 16), avl=0, unusable=0))
    special.set_table(abi.SREGS_GDT, entry.gdt_base, entry.gdt_limit)
    special.set_table(abi.SREGS_IDT, 0, 0x3FF if bits == 16 else 0)
    special.set_control(
        cr0=CR0_ET | (CR0_PE if bits != 16 else 0) | (CR0_PG if bits == 64 else 0),
        cr3=entry.cr3, cr4=CR4_PAE if bits == 64 else 0,
        apic_base=_APIC_BASE | (_APIC_ENABLE if apic else 0),
        efer=EFER_LME | EFER_LMA if bits == 64 else 0)
    special.write()
    set_general(cpu, {name: value & (1 << 64) - 1 for name, value in entry.regs.items()}
                | {"rip": entry.rip, "rsp": entry.rsp, "rflags": _RFLAGS_FIXED})


def write_register(cpu: int, name: str, value: int) -> None:
    """Change one register: the general ones, rip, rflags (not its IOPL), fs_base, gs_base,
    kernel_gs_base, cr2, cr3. KeyError: another name; ValueError: not to this value.
    """
    special = SpecialRegisters(cpu)
    if name in abi.REGS:
        found = general(cpu)
        if name == "rflags":
            value = value & _RFLAGS_WRITABLE | found["rflags"] & _RFLAGS_IOPL | _RFLAGS_FIXED
        elif code_bits(special) != 64:
            value &= 0xFFFF_FFFF
        elif name == "rip" and not _canonical(value):
            raise ValueError(f"rip: {value:#x} is not canonical")
        set_general(cpu, found | {name: value})
        return
    if name not in ("fs_base", "gs_base", "kernel_gs_base", "cr2", "cr3"):
        raise KeyError(name)
    if name.endswith("_base") and not _canonical(value):
        raise ValueError(f"{name}: {value:#x} is not canonical")
    if name == "kernel_gs_base":
        write_msr(cpu, MSR_KERNEL_GS_BASE, value)
        return
    if name in ("cr2", "cr3"):
        special.set_control(**{name: value})
    else:
        segment = name.removesuffix("_base")
        special.set_segment(segment, special.segment(segment)._replace(base=value))
    try:
        special.write()
    except OSError:
        raise ValueError(f"{name}: {value:#x} is refused") from None


def _canonical(value: int) -> bool:
    return value + (1 << 47) & (1 << 64) - 1 < 1 << 48


def code_bits(special: SpecialRegisters) -> int:
    """Code size of the current segment: 16, 32 or 64."""
    cs = special.segment("cs")
    if special.control["efer"] & EFER_LMA and cs.l:
        return 64
    return 32 if cs.db else 16


def privilege(special: SpecialRegisters) -> int:
    """The guest's privilege level: SS's (SDM 3A, 5.5); real mode is 0."""
    return special.segment("ss").dpl if special.control["cr0"] & CR0_PE else 0


def registers(cpu: int) -> dict[str, int]:
    """Everything a report shows, by the names of bt.machine.cpu.VirtualCpu.registers."""
    special = SpecialRegisters(cpu)
    found = general(cpu)
    segments = {name: special.segment(name) for name in abi.SEGMENTS}
    for name in ("cs", "ss", "ds", "es", "fs", "gs", "tr"):
        found[name] = segments[name].selector
    found["ldtr"] = segments["ldt"].selector
    found["fs_base"] = segments["fs"].base
    found["gs_base"] = segments["gs"].base
    found["kernel_gs_base"] = read_msr(cpu, MSR_KERNEL_GS_BASE)
    control = special.control
    found |= {name: control[name] for name in ("cr0", "cr2", "cr3", "cr4", "cr8", "efer")}
    found["gdtr"] = special.table(abi.SREGS_GDT)[0]
    found["idtr"] = special.table(abi.SREGS_IDT)[0]
    found["cpl"] = privilege(special)
    return found
