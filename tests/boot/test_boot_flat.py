# SPDX-License-Identifier: GPL-2.0-or-later
"""Flat binaries, and load()'s choice of a loader."""

import pytest
from bootimages import MB, elf, segment

from bt.boot import load
from bt.errors import InputError
from bt.machine.ram import Ram


@pytest.mark.parametrize(("bits", "base", "cs", "ip"), [
    (16, None, 0, 0x7C00), (16, 0x12345, 0x1000, 0x2345), (32, None, 0x10, MB),
    (32, 0x7C00, 0x10, 0x7C00), (64, None, 0x10, MB), (64, 0x200000, 0x10, 0x200000)])
def test_entry(kernel, bits, base, cs, ip):
    ram = Ram(4 * MB)
    loaded = load(kernel(b"code"), ram, kind="flat", bits=bits, base=base)
    entry = loaded.entry
    assert loaded.kind == "flat"
    assert (entry.bits, entry.cs, entry.rip) == (bits, cs, ip)
    assert bool(entry.cr3) == (bits == 64) and bool(entry.gdt_limit) == (bits > 16)
    assert ram.read(cs * 16 + ip if bits == 16 else ip, 5) == b"code\0"


@pytest.mark.parametrize(("options", "message"), [
    ({"bits": 8}, "16, 32 or 64 bits, not 8"),
    ({"base": 4 * MB - 2, "bits": 32}, "do not fit into 4M"),
    ({"base": -1}, "do not fit"),
    ({"base": 2 * MB}, "real mode cannot start at 0x200000"),
    ({"base": 0x500, "bits": 32}, "covers the GDT"),
    ({"base": 0x10FFE, "bits": 64}, "covers the page tables"),
    ({"cmdline": "x"}, "takes no command line"),
    ({"initrd": b"x"}, "takes no command line and no initrd"),
])
def test_refused(kernel, options, message):
    with pytest.raises(InputError, match=message):
        load(kernel(b"code"), Ram(4 * MB), kind="flat", **options)


def test_file_larger_than_ram(kernel):
    with pytest.raises(InputError, match="2097152 bytes at 0x7c00 do not fit into 1M"):
        load(kernel(bytes(2 * MB)), Ram(MB), kind="flat")


def test_load_options(kernel):
    path = kernel(elf([segment(MB, b"code")]))
    with pytest.raises(InputError, match="unknown kind of kernel 'xen'"):
        load(path, Ram(4 * MB), kind="xen")
    with pytest.raises(InputError, match="for flat binaries only"):
        load(path, Ram(4 * MB), base=MB)
    with pytest.raises(InputError, match="no multiboot header"):
        load(path, Ram(4 * MB), kind="multiboot")
