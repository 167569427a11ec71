# SPDX-License-Identifier: GPL-2.0-or-later
"""The Xen domain builder, by <xen/elfnote.h> and the comment "startofday" in <xen/xen.h>.

The page tables are walked here with a walker of the test's own.
"""

import os
import struct
from itertools import product
from pathlib import Path

import pytest
from bootimages import MB, bzimage, cpio, elf, pack, segment
from hypothesis import given, settings
from hypothesis import strategies as st

from bt import usercache
from bt.boot.xen import load_xen
from bt.errors import InputError
from bt.machine.ram import Ram
from bt.xen.frames import m2p_window, vmm_frames

VIRT_BASE = 0xFFFF_FFFF_8000_0000
INIT_P2M = 1 << 39
KERNEL = 2 * MB
NR_PAGES = 16 * MB >> 12
P, RW, US = 1, 2, 4
ENTRY, HYPERCALL_PAGE, BASE_NOTE, PADDR, XEN_VERSION, OS, GUEST_VERSION, FEATURES, P2M, MOD = (
    1, 2, 3, 4, 5, 6, 7, 10, 15, 16)
INITRD = cpio(("init", b"#!/bin/sh\n" * 1000))


def quad(value):
    return struct.pack("<Q", value)


NOTES = {OS: b"linux\0", GUEST_VERSION: b"2.6\0", XEN_VERSION: b"xen-3.0\0",
         BASE_NOTE: quad(VIRT_BASE), P2M: quad(INIT_P2M), ENTRY: quad(VIRT_BASE + KERNEL + 0x1C0),
         FEATURES: b"!writable_page_tables|pae_pgdir_above_4gb", PADDR: quad(0),
         MOD: struct.pack("<I", 1)}


def note(kind, value, name=b"Xen\0"):
    data = struct.pack("<III", len(name), len(value), kind) + name + bytes(-len(name) % 4)
    return data + value + bytes(-len(value) % 4)


def vmlinux(notes=None, raw=None, code=b"\x90" * 5000, memsz=3 * MB, **changes):
    """A kernel at 2 MB with NOTES; ``notes`` changes some of them, None takes one away."""
    wanted = {**NOTES, **(notes or {})}
    data = note(1, b"decoy", b"GNU\0")
    data += b"".join(note(kind, value) for kind, value in wanted.items() if value is not None)
    return elf([segment(KERNEL, code, memsz=memsz, vaddr=VIRT_BASE + KERNEL),
                segment(KERNEL, data if raw is None else raw, kind=4)], entry=KERNEL, **changes)


def ram_for(nr_pages=NR_PAGES):
    return Ram(nr_pages + vmm_frames(nr_pages) << 12)


@pytest.fixture
def build(kernel):
    def build(data=None, *, nr_pages=NR_PAGES, initrd=INITRD, cmdline="console=hvc0"):
        ram = ram_for(nr_pages)
        path = kernel(vmlinux() if data is None else data)
        domain = load_xen(path, ram, nr_pages=nr_pages, cmdline=cmdline, initrd=initrd)
        return ram, domain
    return build


def walk(ram, root, gva):
    """(page frame, rights that all levels give); None if there is no mapping."""
    table, rights = root, P | RW | US
    for shift in (39, 30, 21, 12):
        entry = struct.unpack_from("<Q", ram.view, table + (gva >> shift & 511) * 8)[0]
        if not entry & P:
            return None
        rights &= entry
        table = entry & 0x000F_FFFF_FFFF_F000
    return table >> 12, rights


class StartInfo:
    """struct start_info, field by field."""

    def __init__(self, ram, gpa):
        def u64(at):
            return struct.unpack_from("<Q", ram.view, gpa + at)[0]

        def u32(at):
            return struct.unpack_from("<I", ram.view, gpa + at)[0]

        self.magic = ram.read(gpa, 32).rstrip(b"\0")
        self.nr_pages, self.shared_info, self.flags = u64(32), u64(40), u32(48)
        self.store_mfn, self.store_evtchn = u64(56), u32(64)
        self.console_mfn, self.console_evtchn = u64(72), u32(80)
        self.pt_base, self.nr_pt_frames, self.mfn_list = u64(88), u64(96), u64(104)
        self.mod_start, self.mod_len = u64(112), u64(120)
        self.cmd_line = ram.read(gpa + 128, 1024).split(b"\0")[0]
        self.first_p2m_pfn, self.nr_p2m_frames = u64(1152), u64(1160)


def check(ram, domain, *, virt_base=VIRT_BASE):
    """What every domain must look like to its kernel; gives its start_info."""
    entry = domain.entry
    root = entry.cr3
    assert root == domain.l4_gpa and entry.bits == 64
    assert (entry.cs, entry.ds) == (0xE033, 0xE02B)
    assert entry.regs["rsi"] == domain.start_info_gva
    info_pfn, rights = walk(ram, root, domain.start_info_gva)
    assert rights & RW
    info = StartInfo(ram, info_pfn << 12)
    nr_pages = domain.nr_pages
    assert info.magic == b"xen-3.0-x86_64" and info.nr_pages == nr_pages
    assert info.shared_info == domain.shared_info_gpa >= nr_pages << 12
    assert info.store_mfn << 12 == domain.xenstore_gpa
    assert info.console_mfn << 12 == domain.console_gpa
    assert 0 < info.store_evtchn != info.console_evtchn > 0

    # The order of startofday: start_info, xenstore, console, page tables, stack.
    first_table = info.pt_base - virt_base >> 12
    stack = (entry.rsp - virt_base >> 12) - 1
    assert info_pfn < info.store_mfn < info.console_mfn < first_table == root >> 12
    assert stack == first_table + info.nr_pt_frames
    initial = [pfn for level in (4, 3, 2, 1) for pfn in domain.tables[level]
               if first_table <= pfn < stack]
    assert initial == list(range(first_table, stack))

    # The initial region is mapped one to one, up to a 4 MB boundary, 512 kB behind the stack.
    end = 0
    while (found := walk(ram, root, virt_base + (end << 12))) is not None:
        assert found[0] == end < nr_pages
        assert bool(found[1] & RW) == (end not in initial)
        assert not found[1] & US
        end += 1
    assert (virt_base + (end << 12)) % (4 << 20) == 0 and end - stack - 1 >= 128

    # The p2m says that machine frames are pages, and every entry can be reached.
    for page in {0, 1, 511, 512, nr_pages // 2, nr_pages - 1}:
        gva = info.mfn_list + page * 8
        pfn, _ = walk(ram, root, gva)
        assert struct.unpack_from("<Q", ram.view, (pfn << 12) + gva % 4096)[0] == page

    # So does the m2p, where the ABI has it and where a hypercall says it is. It is not for writing,
    # nor for user code.
    window = m2p_window(nr_pages) << 12
    assert window % (64 << 12) and window > nr_pages * 8
    for page, at in product({0, 511, 512, nr_pages - 1}, (0, window)):
        gva = 0xFFFF_8000_0000_0000 + at + page * 8
        frame, rights = walk(ram, root, gva)
        assert frame >= nr_pages and not rights & (RW | US)
        assert frame in domain.frames.readonly
        assert struct.unpack_from("<Q", ram.view, (frame << 12) + gva % 4096)[0] == page
    assert struct.unpack_from("<Q", ram.view, root + 256 * 8)[0] == domain.m2p_l4_entry
    assert domain.shared_info_gpa >> 12 in domain.frames.writable

    shared = ram.read(domain.shared_info_gpa, 4096)
    assert [shared[64 * vcpu + 1] for vcpu in range(32)] == [1] * 32
    assert sum(shared) == 32

    # Each table is of the level it is listed at: all of them are reached from the root.
    levels = {4: {root >> 12}, 3: set(), 2: set(), 1: set()}
    for level in (4, 3, 2):
        for table in levels[level]:
            for slot, (value,) in enumerate(struct.iter_unpack("<Q", ram.read(table << 12, 4096))):
                if value & P and not (level == 4 and slot == 256):
                    levels[level - 1].add(value >> 12 & (1 << 40) - 1)
    assert {level: set(pfns) for level, pfns in domain.tables.items()} == levels
    return info


def test_a_domain_as_linux_wants_it(build):
    ram, domain = build()
    info = check(ram, domain)
    assert domain.entry.rip == VIRT_BASE + KERNEL + 0x1C0
    assert ram.read(KERNEL, 5000) == b"\x90" * 5000
    assert info.cmd_line == b"console=hvc0"
    assert info.mfn_list == INIT_P2M
    # The initrd is not mapped, and named by its page.
    assert info.flags == 1 << 3 and info.mod_len == len(INITRD)
    assert ram.read(info.mod_start << 12, len(INITRD)) == INITRD
    assert walk(ram, domain.l4_gpa, VIRT_BASE + (info.mod_start << 12)) is None
    # The p2m with its page tables lies behind it, apart from all that is mapped.
    assert info.first_p2m_pfn >= info.mod_start + (len(INITRD) >> 12)
    assert info.nr_p2m_frames == NR_PAGES * 8 // 4096 + 3
    p2m = range(info.first_p2m_pfn, info.first_p2m_pfn + info.nr_p2m_frames)
    assert walk(ram, domain.l4_gpa, INIT_P2M)[0] == p2m[0]
    assert set(p2m[-3:]) < {pfn for pfns in domain.tables.values() for pfn in pfns}
    assert domain.hypercall_page_gva == 0


def test_a_domain_with_everything_in_its_first_region(build):
    page = VIRT_BASE + KERNEL + 0x2000
    ram, domain = build(vmlinux({P2M: None, MOD: None, HYPERCALL_PAGE: quad(page)}))
    info = check(ram, domain)
    assert info.flags == 0
    pfn, _ = walk(ram, domain.l4_gpa, info.mod_start)
    assert ram.read(pfn << 12, len(INITRD)) == INITRD
    assert KERNEL < pfn << 12 < info.mfn_list - VIRT_BASE < domain.start_info_gva - VIRT_BASE
    assert (info.first_p2m_pfn, info.nr_p2m_frames) == (0, 0)
    assert ram.read(KERNEL + 0x2000 + 17 * 32, 9) == b"\x51\x41\x53\xb8\x11\x00\x00\x00\x0f"


def test_without_an_initrd(build):
    ram, domain = build(initrd=None)
    info = check(ram, domain)
    assert (info.flags, info.mod_start, info.mod_len) == (0, 0, 0)


@pytest.mark.parametrize("nr_pages", [3600, 4097, 40_000, 600_000])
def test_sizes(build, nr_pages):
    """600,000 pages need a second L2 for nothing, but several L1 tables for p2m and m2p."""
    check(*build(nr_pages=nr_pages))


def test_bzimage(build):
    data = vmlinux()
    ram, domain = build(bzimage(pack(data, "gzip"), init_size=4 * MB, pref_address=KERNEL))
    check(ram, domain)
    assert "Linux 6.1.0-test (gzip)" in domain.description


@pytest.mark.parametrize(("notes", "message"), [
    ({OS: b"freebsd\0"}, "Xen guest of type 'freebsd'; only Linux"),
    ({OS: None}, "Xen guest of type 'unknown'"),
    ({XEN_VERSION: b"xen-9.0\0"}, "for Xen interface 'xen-9.0'"),
    ({ENTRY: None}, "no Xen note ENTRY"),
    ({BASE_NOTE: None}, "no Xen note VIRT_BASE"),
    ({ENTRY: b"abc"}, "ENTRY has 3 bytes"),
    ({ENTRY: quad(0x1000)}, "ENTRY 0x1000 is outside"),
    ({ENTRY: quad((1 << 64) - 1)}, "outside of the kernel"),
    ({BASE_NOTE: quad(VIRT_BASE + 4096)}, "VIRT_BASE .* is not where"),
    ({BASE_NOTE: quad(0)}, "VIRT_BASE 0x0 is not where"),
    ({BASE_NOTE: quad(0xFFFF_8000_0000_0000)}, "VIRT_BASE .* is not where"),
    ({BASE_NOTE: quad((1 << 64) - (2 << 20))}, "VIRT_BASE .* is not where"),
    ({PADDR: quad(VIRT_BASE)}, "PADDR_OFFSET is not 0"),
    ({HYPERCALL_PAGE: quad(VIRT_BASE)[:4]}, "HYPERCALL_PAGE .* is outside"),
    ({HYPERCALL_PAGE: quad(VIRT_BASE + KERNEL + 8)}, "is not a page"),
    ({P2M: quad(INIT_P2M + 1)}, "INIT_P2M .* is not where"),
    ({P2M: quad(0)}, "INIT_P2M .* is not where"),
    ({P2M: quad(1 << 47)}, "INIT_P2M .* is not where"),
    ({P2M: quad(0xFFFF_8000_0000_0000)}, "INIT_P2M .* is not where"),
    ({P2M: quad(VIRT_BASE)}, "INIT_P2M .* is not where"),
    ({FEATURES: b"!auto_translated_physmap"}, "insists on Xen's feature auto_translated_physmap"),
    ({FEATURES: b"pae_pgdir_above_4gb|!dom0\0"}, "insists on Xen's feature dom0"),
])
def test_notes_that_cannot_be_followed(build, notes, message):
    with pytest.raises(InputError, match=message) as error:
        build(vmlinux(notes))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("raw", [
    b"", b"\0" * 11, note(1, b"x", b"GNU\0"), struct.pack("<III", 4, 1 << 31, 1) + b"Xen\0",
    struct.pack("<III", 0xFFFF_FFFF, 4, 1) + b"Xen\0"])
def test_no_notes_of_xen(build, raw):
    with pytest.raises(InputError, match="has no Xen notes"):
        build(vmlinux(raw=raw))


def test_32_bit_kernel(build):
    with pytest.raises(InputError, match="is a 32-bit kernel; only 64-bit"):
        build(elf([segment(KERNEL, b"\x90")], entry=KERNEL, bits=32))


def test_memory_that_does_not_suffice(build):
    with pytest.raises(InputError, match=r"needs more than 4M of memory as a Xen domain"):
        build(nr_pages=4 * MB >> 12)
    with pytest.raises(InputError, match=r"of it for initrd"):
        build(initrd=cpio(("big", bytes(12 * MB))))


def test_no_room_for_the_frames_of_the_vmm(kernel):
    with pytest.raises(InputError, match=r"domain of 4096 pages needs \d+ pages of RAM"):
        load_xen(kernel(vmlinux()), Ram(NR_PAGES << 12), nr_pages=NR_PAGES)


def test_command_lines_that_do_not_fit(build):
    ram, domain = build(cmdline="x" * 1023)
    assert check(ram, domain).cmd_line == b"x" * 1023
    with pytest.raises(InputError, match="1024 bytes; 1023 is the limit"):
        build(cmdline="x" * 1024)
    with pytest.raises(InputError, match="NUL"):
        build(cmdline="a\0b")


@settings(max_examples=200, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 1023), st.integers(0, 255)), min_size=1, max_size=8))
def test_damaged_kernels(tmp_path_factory, damage):
    """Any bytes changed in headers or notes: a domain that holds together, or one clear line."""
    data = bytearray(vmlinux(code=b"\x90" * 64))
    for at, value in damage:
        data[at % len(data)] = value
    path = tmp_path_factory.mktemp("damaged") / "kernel"
    path.write_bytes(data)
    ram = ram_for()
    try:
        domain = load_xen(path, ram, nr_pages=NR_PAGES)
    except InputError as error:
        assert "\n" not in str(error)
    else:
        assert domain.entry.rip and domain.frames.next <= ram.size >> 12


KERNELS = [path for path in (*sorted(Path("/boot").glob("vmlinuz-*")),
                             *sorted(usercache.need("debian").glob("**/vmlinuz*")))
           if path.is_file() and os.access(path, os.R_OK)]


@pytest.mark.slow
@pytest.mark.skipif(not KERNELS, reason="no Debian kernel is installed or fetched")
@pytest.mark.parametrize("path", KERNELS, ids=lambda path: path.name)
def test_debian_kernel(path):
    nr_pages = 256 * MB >> 12
    ram = ram_for(nr_pages)
    domain = load_xen(path, ram, nr_pages=nr_pages, cmdline="console=hvc0", initrd=INITRD)
    info = check(ram, domain)
    release = domain.description.split()[1]
    assert f"Linux version {release} ".encode() in ram.read(16 * MB, 64 * MB)
    assert info.mfn_list == INIT_P2M and info.flags == 1 << 3
