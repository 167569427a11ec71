# SPDX-License-Identifier: GPL-2.0-or-later
"""PVH: Xen's direct boot protocol, which kernels offer and other VMMs use too.

Sources: <xen/elfnote.h> (XEN_ELFNOTE_PHYS32_ENTRY), <xen/arch-x86/hvm/start_info.h>, and Xen's
docs/misc/pvh.pandoc for the CPU's state. The kernel is an ELF file, or the one inside a bzImage,
with the note: its physical entry point. It starts in 32-bit protected mode with paging off. EBX
points to an hvm_start_info with command line, module, memory map and RSDP.
"""

from __future__ import annotations

import struct

from bt.boot import elf, initrd, lowmem
from bt.boot.entry import EntryState, Loaded
from bt.boot.image import FileImage, Image
from bt.boot.linux import open_kernel
from bt.errors import InputError
from bt.machine.ram import Ram

NOTE_PHYS32_ENTRY = 18
START_MAGIC = 0x336EC578
VERSION = 1
#: magic, version, flags, nr_modules, modlist, cmdline, rsdp, memmap, memmap_entries, reserved.
START_INFO = struct.Struct("<4I4Q2I")
#: paddr, size, cmdline, reserved.
MODLIST_ENTRY = struct.Struct("<4Q")
#: addr, size, type (as E820's), reserved.
MEMMAP_ENTRY = struct.Struct("<2Q2I")
_FOUR_GB = 1 << 32
_MAX_CMDLINE = 2047


def load(image: FileImage, ram: Ram, cmdline: str, ramdisk: Image | None, rsdp: int) -> Loaded:
    """Put a kernel, its start info, command line and module into RAM. Raises InputError."""
    kernel = open_kernel(image, ram)
    with kernel.image:
        vmlinux = elf.parse(kernel.image)
        entry = _entry(image.name, kernel.image, vmlinux)
        end = max(kernel.end, vmlinux.end) + lowmem.PAGE - 1 & -lowmem.PAGE
        elf.check_fits(image.name, end, ram, ramdisk)
        elf.load_segments(kernel.image, vmlinux, ram)
    modules = b""
    map_at = lowmem.INFO_EXTRA
    regions = b"".join(MEMMAP_ENTRY.pack(*region, 0) for region in lowmem.memory_map(ram))
    modules_at = map_at + len(regions)
    if ramdisk:
        start, size = initrd.place(ramdisk, ram, end, _FOUR_GB)
        modules = MODLIST_ENTRY.pack(start, size, 0, 0)
    ram.write(map_at, regions + modules)
    command = lowmem.write_cmdline(ram, cmdline, _MAX_CMDLINE)
    ram.write(lowmem.INFO, START_INFO.pack(
        START_MAGIC, VERSION, 0, 1 if modules else 0, modules_at if modules else 0, command, rsdp,
        map_at, len(regions) // MEMMAP_ENTRY.size, 0))
    gdt_base, gdt_limit = lowmem.write_gdt(ram, 32)
    state = EntryState(bits=32, rip=entry, rsp=lowmem.STACK_TOP, regs={"rbx": lowmem.INFO},
                       gdt_base=gdt_base, gdt_limit=gdt_limit, cs=lowmem.CS, ds=lowmem.DS)
    return Loaded(state, "pvh", f"{kernel.description}, PVH")


def _entry(name: str, image: Image, vmlinux: elf.Elf) -> int:
    """The physical entry point that the note gives, which must lie in the kernel."""
    for kind, value in elf.xen_notes(image, vmlinux):
        if kind != NOTE_PHYS32_ENTRY:
            continue
        if len(value) not in (4, 8):
            raise InputError(f"{name}: Xen note PHYS32_ENTRY has {len(value)} bytes instead of "
                             "4 or 8")
        entry = int.from_bytes(value, "little")
        if entry >= _FOUR_GB or not any(s.paddr <= entry < s.paddr + s.memsz
                                        for s in vmlinux.segments):
            raise InputError(f"{name}: Xen note PHYS32_ENTRY {entry:#x} is outside of the kernel")
        return entry
    raise InputError(f"{name}: has no PVH entry (Xen's ELF note PHYS32_ENTRY)")
