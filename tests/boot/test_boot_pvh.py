# SPDX-License-Identifier: GPL-2.0-or-later
"""PVH: what a kernel is given, by Xen's public headers, and what is refused."""

import re
import shutil
import struct
import subprocess
from pathlib import Path

import pytest
from bootimages import MB, bzimage, cpio, elf, pack, segment

from bt.boot import load, pvh
from bt.errors import InputError
from bt.machine.ram import Ram

ENTRY = MB + 0x120
CODE = bytes(range(256)) * 32
DISK = cpio(("init", b"#!/bin/sh\n"))


def note(kind, value, name=b"Xen\0"):
    return struct.pack("<III", len(name), len(value), kind) + name + value + \
        bytes(-len(value) % 4)


WHERE = struct.pack("<Q", ENTRY)


def vmlinux(value=WHERE, bits=64, kind=pvh.NOTE_PHYS32_ENTRY):
    notes = note(1, b"decoy", b"GNU\0") + note(6, b"linux\0") + note(kind, value)
    return elf([segment(MB, CODE, memsz=0x10000), segment(MB, notes, kind=4)], bits=bits)


def start_info(ram, loaded):
    names = ("magic", "version", "flags", "nr_modules", "modlist", "cmdline", "rsdp", "memmap",
             "memmap_entries", "reserved")
    at = loaded.entry.regs["rbx"]
    return dict(zip(names, pvh.START_INFO.unpack(ram.read(at, pvh.START_INFO.size)), strict=True))


@pytest.mark.parametrize("make", [
    vmlinux, lambda: bzimage(pack(vmlinux(), "gzip")),
    lambda: vmlinux(struct.pack("<I", ENTRY), bits=32)])
def test_what_a_kernel_finds(kernel, make):
    ram = Ram(8 * MB)
    loaded = load(kernel(make()), ram, kind="pvh", cmdline="console=ttyS0", initrd=DISK,
                  rsdp=0xE0000)
    entry = loaded.entry
    assert loaded.kind == "pvh" and loaded.description.endswith("PVH")
    assert (entry.bits, entry.rip, entry.cr3) == (32, ENTRY, 0)
    assert ram.read(MB, len(CODE)) == CODE
    info = start_info(ram, loaded)
    assert (info["magic"], info["version"], info["flags"], info["reserved"]) == (
        0x336EC578, 1, 0, 0)
    assert ram.read(info["cmdline"], 14) == b"console=ttyS0\0"
    assert info["rsdp"] == 0xE0000 and info["nr_modules"] == 1
    start, size, command, reserved = pvh.MODLIST_ENTRY.unpack(ram.read(info["modlist"], 32))
    assert ram.read(start, size) == DISK and (command, reserved) == (0, 0)
    regions = [pvh.MEMMAP_ENTRY.unpack(ram.read(info["memmap"] + 24 * i, 24))
               for i in range(info["memmap_entries"])]
    assert regions == [(0, 0x9FC00, 1, 0), (0x9FC00, 0x60400, 2, 0), (MB, 7 * MB, 1, 0)]


def test_no_module_and_no_acpi(kernel):
    ram = Ram(8 * MB)
    info = start_info(ram, load(kernel(vmlinux()), ram, kind="pvh"))
    assert (info["nr_modules"], info["modlist"], info["rsdp"]) == (0, 0, 0)


@pytest.mark.parametrize("data, words", [
    (elf([segment(MB, CODE)]), "has no PVH entry"),
    (vmlinux(kind=1), "has no PVH entry"),
    (vmlinux(b"abc"), "3 bytes instead of 4 or 8"),
    (vmlinux(struct.pack("<Q", 5 * MB)), "outside of the kernel"),
    (vmlinux(struct.pack("<Q", 1 << 40 | ENTRY)), "outside of the kernel"),
])
def test_refused(kernel, data, words):
    with pytest.raises(InputError, match=words):
        load(kernel(data), Ram(8 * MB), kind="pvh")


HEADERS = Path("/usr/include/xen")


@pytest.mark.skipif(not (HEADERS / "arch-x86/hvm/start_info.h").exists()
                    or shutil.which("cc") is None,
                    reason="needs a C compiler and Xen's public headers (libxen-dev)")
def test_layouts_are_those_of_the_headers(tmp_path):
    """Sizes and offsets as the compiler has them; a struct format's are worked out here."""
    fields = {
        "hvm_start_info": (pvh.START_INFO, "magic version flags nr_modules modlist_paddr "
                           "cmdline_paddr rsdp_paddr memmap_paddr memmap_entries reserved"),
        "hvm_modlist_entry": (pvh.MODLIST_ENTRY, "paddr size cmdline_paddr reserved"),
        "hvm_memmap_table_entry": (pvh.MEMMAP_ENTRY, "addr size type reserved")}
    lines, ours = [], []
    for name, (layout, words) in fields.items():
        lines.append(f"sizeof(struct {name})")
        ours.append(layout.size)
        lines += [f"offsetof(struct {name}, {field})" for field in words.split()]
        at = 0
        for count, code in re.findall(r"(\d*)([A-Z])", layout.format):
            for _ in range(int(count or 1)):
                ours.append(at)
                at += struct.calcsize("<" + code)
    lines += ["XEN_HVM_START_MAGIC_VALUE", "XEN_ELFNOTE_PHYS32_ENTRY", "XEN_HVM_MEMMAP_TYPE_RAM",
              "XEN_HVM_MEMMAP_TYPE_RESERVED"]
    ours += [pvh.START_MAGIC, pvh.NOTE_PHYS32_ENTRY, 1, 2]
    source = tmp_path / "layout.c"
    source.write_text(
        "#include <stddef.h>\n#include <stdint.h>\n#include <stdio.h>\n#include <xen/xen.h>\n"
        "#include <xen/elfnote.h>\n#include <xen/arch-x86/hvm/start_info.h>\nint main(void) {\n"
        + "".join(f'    printf("%lu\\n", (unsigned long)({line}));\n' for line in lines)
        + "    return 0;\n}\n")
    program = tmp_path / "layout"
    subprocess.run(["cc", "-o", str(program), str(source)], check=True, capture_output=True)
    theirs = subprocess.run([str(program)], check=True, capture_output=True, text=True).stdout
    assert [int(line) for line in theirs.split()] == ours
