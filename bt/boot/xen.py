# SPDX-License-Identifier: GPL-2.0-or-later
"""Xen's domain builder: a 64-bit kernel with Xen's ELF notes becomes a paravirtual domain.

Sources: <xen/elfnote.h> (what a kernel asks for) and the comment "startofday" in <xen/xen.h> (what
it is given). Memory is handed out in one run of pages from 0, and machine frames are the same
numbers, so a p2m is just counting. From low to high:

    kernel  [initrd]  [p2m]  start_info  xenstore  console  page tables  boot stack  padding
    [initrd, not mapped]  [p2m and its page tables, mapped at INIT_P2M]

What stands in brackets lies in the first place unless a note asks for the second. Up to the end of
the padding all of it is mapped from VIRT_BASE on, read-write but for the page tables. They lie in
the order L4, L3, L2, L1, which Linux relies on (arch/x86/xen/mmu_pv.c). The VMM's own frames follow
behind the domain's last page (bt.xen.frames).
"""

from __future__ import annotations

import struct
from array import array
from contextlib import ExitStack
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

from bt.boot import elf, linux
from bt.boot import initrd as initrds
from bt.boot.entry import EntryState
from bt.boot.image import FileImage, Image
from bt.boot.lowmem import megabytes
from bt.errors import InputError
from bt.machine.ram import Ram
from bt.xen import abi
from bt.xen.frames import XenFrames, m2p_pages, m2p_window, table_pages

#: Event channels that exist at boot.
STORE_PORT = 1
CONSOLE_PORT = 2

_MAGIC = b"xen-3.0-x86_64"
_PRESENT, _WRITE, _USER, _ACCESSED, _DIRTY = 1, 2, 4, 0x20, 0x40
_NX = 1 << 63
_LEAF = _PRESENT | _WRITE | _ACCESSED
_TABLE = _LEAF | _DIRTY | _USER
# The M2P is for the guest's kernel to read: supervisor, never written, never executed.
_M2P = _PRESENT | _ACCESSED | _NX
_LEVELS = (4, 3, 2, 1)
_REGION_END = 4 << 20       # <xen/xen.h>: the initial region ends on a 4 MB boundary,
_PADDING = 512 << 10        # with at least 512 kB of padding
_SLOT = 32                  # bytes a hypercall in the hypercall page
_IRET = 23
_LOW_END = 1 << 47

# Features that a kernel may insist on ("!name") and that a paravirtual domain here cannot have.
_IMPOSSIBLE = ("auto_translated_physmap", "supervisor_mode_kernel", "dom0")


@dataclass(frozen=True)
class XenDomain:
    """A domain that lies in RAM, ready to start. Addresses are in bytes: gpa, or gva (virtual)."""

    entry: EntryState
    description: str
    nr_pages: int
    frames: XenFrames
    start_info_gva: int
    shared_info_gpa: int
    console_gpa: int
    xenstore_gpa: int
    l4_gpa: int
    #: Value for slot 256 of every L4: the machine-to-physical table, read-only.
    m2p_l4_entry: int
    #: The machine-to-physical table itself: 8 bytes a guest page, identity.
    m2p_gpa: int
    #: Page frames of the initial page tables, by level (4 to 1).
    tables: dict[int, tuple[int, ...]] = field(repr=False)
    #: The initrd's pages: first page frame and size in bytes (0, 0: none).
    initrd: tuple[int, int] = (0, 0)
    #: Where the kernel wants its hypercall page (gva), 0 for one that does SYSCALL itself.
    hypercall_page_gva: int = 0


def load_xen(path: Path, ram: Ram, *, nr_pages: int, cmdline: str = "",
             initrd: Path | bytes | None = None) -> XenDomain:
    """Build a domain of ``nr_pages`` pages in ``ram``, which must be fresh (all zero).

    ``ram`` must have ``nr_pages + bt.xen.frames.vmm_frames(nr_pages)`` pages. Raises InputError,
    with the file's name in the message.
    """
    with ExitStack() as files:
        image = files.enter_context(FileImage(Path(path)))
        if image.size == 0:
            raise InputError(f"{image.name}: is empty")
        ramdisk = None
        if initrd is not None:
            ramdisk = files.enter_context(initrds.open_initrd(initrd))
            initrds.check_linux(ramdisk)
        kernel = linux.open_kernel(image, ram)
        files.enter_context(kernel.image)
        return _Builder(kernel, ram, nr_pages, ramdisk).build(cmdline)


class Notes(NamedTuple):
    """What the kernel says about itself in its ELF notes; addresses are virtual."""

    entry: int
    virt_base: int
    hypercall_page: int | None
    init_p2m: int | None
    mod_start_pfn: bool
    guest: str


def read_notes(image: Image, vmlinux: elf.Elf) -> Notes:
    """Read and check the notes of a 64-bit kernel. Raises InputError, in one line."""
    name = image.name
    found: dict[int, bytes] = {}
    for kind, value in elf.xen_notes(image, vmlinux):
        found.setdefault(kind, value)
    if not found:
        raise InputError(f"{name}: has no Xen notes, so it cannot run paravirtual "
                         "(CONFIG_XEN_PV=y is needed)")

    def number(kind: int, what: str) -> int | None:
        value = found.get(kind)
        if value is None:
            return None
        if len(value) not in (4, 8):
            raise InputError(f"{name}: Xen note {what} has {len(value)} bytes instead of 4 or 8")
        return int.from_bytes(value, "little")

    def text(kind: int, default: str) -> str:
        words = found.get(kind, default.encode()).split(b"\0")[0].decode("ascii", "replace")
        return "".join(c if c.isprintable() else "?" for c in words[:64])

    guest_os = text(abi.XEN_ELFNOTE_GUEST_OS, "unknown")
    if guest_os != "linux":
        raise InputError(f"{name}: is a Xen guest of type {guest_os!r}; only Linux is known here")
    version = text(abi.XEN_ELFNOTE_XEN_VERSION, "xen-3.0")
    if version != "xen-3.0":
        raise InputError(f"{name}: is for Xen interface {version!r} instead of 'xen-3.0'")
    if number(abi.XEN_ELFNOTE_PADDR_OFFSET, "PADDR_OFFSET"):
        raise InputError(f"{name}: Xen note PADDR_OFFSET is not 0, which is not supported")
    for feature in found.get(abi.XEN_ELFNOTE_FEATURES, b"").split(b"\0")[0].split(b"|"):
        wanted = feature[1:].decode("ascii", "replace")
        if feature.startswith(b"!") and wanted in _IMPOSSIBLE:
            raise InputError(f"{name}: insists on Xen's feature {wanted}, which a paravirtual "
                             "domain does not have")
    entry = number(abi.XEN_ELFNOTE_ENTRY, "ENTRY")
    virt_base = number(abi.XEN_ELFNOTE_VIRT_BASE, "VIRT_BASE")
    if entry is None or virt_base is None:
        what = "VIRT_BASE" if entry is not None else "ENTRY"
        raise InputError(f"{name}: has no Xen note {what}: built without CONFIG_XEN_PV?")
    return Notes(entry, virt_base,
                 number(abi.XEN_ELFNOTE_HYPERCALL_PAGE, "HYPERCALL_PAGE"),
                 number(abi.XEN_ELFNOTE_INIT_P2M, "INIT_P2M"),
                 bool(number(abi.XEN_ELFNOTE_MOD_START_PFN, "MOD_START_PFN")),
                 f"{guest_os} {text(abi.XEN_ELFNOTE_GUEST_VERSION, '')}".strip())


class _Map(NamedTuple):
    """A stretch of virtual memory (bytes, pages) and the page frame its first page lies in."""

    start: int
    end: int
    pfn: int

    def tables(self, level: int) -> tuple[int, int]:
        """Index of the first page table of ``level`` that covers it, and how many there are."""
        shift = 12 + 9 * level
        first = self.start >> shift
        return first, (self.end - 1 >> shift) - first + 1


class _Builder:
    """Lays one domain out. ``next`` is the next page frame that is free."""

    def __init__(self, kernel: linux.Kernel, ram: Ram, nr_pages: int,
                 ramdisk: Image | None) -> None:
        self.kernel = kernel
        self.name = kernel.image.name
        self.ram = ram
        self.nr_pages = nr_pages
        self.ramdisk = ramdisk
        self.next = 0

    def build(self, cmdline: str) -> XenDomain:
        vmlinux = elf.parse(self.kernel.image)
        if vmlinux.bits != 64 or vmlinux.machine != elf.EM_X86_64:
            raise InputError(f"{self.name}: is a {vmlinux.bits}-bit kernel; only 64-bit ones can "
                             "be a Xen domain here")
        self.notes = notes = read_notes(self.kernel.image, vmlinux)
        self._check_addresses(vmlinux)
        command = self._command_line(cmdline)
        self._take(-(-vmlinux.end // abi.PAGE_SIZE))
        elf.load_segments(self.kernel.image, vmlinux, self.ram)

        module = (0, 0)
        if self.ramdisk and not notes.mod_start_pfn:
            module = self._place_ramdisk(self.ramdisk)
        p2m_size = self.nr_pages * 8
        p2m_pages = -(-p2m_size // abi.PAGE_SIZE)
        p2m_pfn = 0
        if notes.init_p2m is None:
            p2m_pfn = self._take(p2m_pages)
        start_info, xenstore, console = (self._take(1) for _ in range(3))

        main, counts = self._main_map()
        tables = {level: self._take_tables(counts[level]) for level in _LEVELS}
        pt_base = tables[4][0]
        stack = self._take(1)
        self._take((main.end - notes.virt_base >> 12) - self.next)
        self._write_tables(main, tables, read_only=range(pt_base, stack))
        if self.ramdisk and notes.mod_start_pfn:
            module = self._place_ramdisk(self.ramdisk)
        first_p2m = nr_p2m = 0
        if notes.init_p2m is not None:
            p2m_pfn = first_p2m = self._take(p2m_pages)
            p2m_map = _Map(notes.init_p2m, notes.init_p2m + (p2m_pages << 12), p2m_pfn)
            own = {level: self._take_tables(p2m_map.tables(level)[1]) for level in (3, 2, 1)}
            nr_p2m = self.next - first_p2m
            self._write_tables(p2m_map, {4: tables[4], **own})
            for level, pfns in own.items():
                tables[level] += pfns

        frames = XenFrames(self.ram, self.nr_pages)
        identity = array("Q", range(self.nr_pages))
        self.ram.write(p2m_pfn << 12, memoryview(identity).cast("B"))
        m2p, m2p_entry = _write_m2p(frames, identity)
        self._set_entry(tables[4][0], abi.MACH2PHYS_VIRT_START >> 39 & 511, m2p_entry)
        shared_info = frames.share()
        for vcpu in range(abi.XEN_LEGACY_MAX_VCPUS):
            at = (shared_info << 12) + vcpu * abi.VCPU_INFO_SIZE + abi.VCPU_INFO_MASK
            self.ram.view[at] = 1
        if notes.hypercall_page is not None:
            self.ram.write(notes.hypercall_page - notes.virt_base, hypercall_page())

        def gva(pfn: int) -> int:
            return notes.virt_base + (pfn << 12)

        mod_start, flags = 0, 0
        if self.ramdisk:
            unmapped = notes.mod_start_pfn
            mod_start = module[0] if unmapped else gva(module[0])
            flags = abi.SIF_MOD_START_PFN if unmapped else 0
        self.ram.write(start_info << 12, abi.START_INFO.pack(
            _MAGIC, self.nr_pages, shared_info << 12, flags, xenstore, STORE_PORT,
            console, CONSOLE_PORT, gva(pt_base), sum(counts.values()),
            gva(p2m_pfn) if notes.init_p2m is None else notes.init_p2m, mod_start, module[1],
            command, first_p2m, nr_p2m))
        entry = EntryState(bits=64, rip=notes.entry, rsp=gva(stack) + abi.PAGE_SIZE,
                           regs={"rsi": gva(start_info)}, cr3=pt_base << 12,
                           cs=abi.FLAT_KERNEL_CS, ds=abi.FLAT_KERNEL_SS)
        return XenDomain(
            entry=entry, description=f"{self.kernel.description}, Xen PV domain",
            nr_pages=self.nr_pages, frames=frames, start_info_gva=gva(start_info),
            shared_info_gpa=shared_info << 12, console_gpa=console << 12,
            xenstore_gpa=xenstore << 12, l4_gpa=pt_base << 12, m2p_l4_entry=m2p_entry,
            m2p_gpa=m2p << 12, tables=tables, initrd=module,
            hypercall_page_gva=notes.hypercall_page or 0)

    def _check_addresses(self, vmlinux: elf.Elf) -> None:
        """The notes' addresses must lie in the kernel, and clear of Xen's part of the map."""
        notes = self.notes
        base = notes.virt_base
        if base % (1 << 21) or not abi.HYPERVISOR_VIRT_END <= base < (1 << 64) - (1 << 30):
            raise InputError(f"{self.name}: Xen note VIRT_BASE {base:#x} is not where a kernel "
                             "can be mapped")
        end = base + vmlinux.end
        if end + (1 << 30) > 1 << 64:
            raise InputError(f"{self.name}: does not fit behind its VIRT_BASE {base:#x}")
        for what, address, size in (("ENTRY", notes.entry, 1),
                                    ("HYPERCALL_PAGE", notes.hypercall_page, abi.PAGE_SIZE)):
            if address is not None and not base <= address <= end - size:
                raise InputError(f"{self.name}: Xen note {what} {address:#x} is outside of the "
                                 "kernel")
        if notes.hypercall_page is not None and notes.hypercall_page % abi.PAGE_SIZE:
            raise InputError(f"{self.name}: Xen note HYPERCALL_PAGE {notes.hypercall_page:#x} is "
                             "not a page")
        p2m = notes.init_p2m
        if p2m is None:
            return
        # Its tables hang in L4 slots of their own, as Xen's builder makes them.
        last = p2m + self.nr_pages * 8 - 1
        low = 0 < p2m and last < _LOW_END
        high = abi.HYPERVISOR_VIRT_END <= p2m and last >> 39 < base >> 39
        if p2m % abi.PAGE_SIZE or not (low or high):
            raise InputError(f"{self.name}: Xen note INIT_P2M {p2m:#x} is not where a table can "
                             "be mapped")

    def _command_line(self, cmdline: str) -> bytes:
        command = cmdline.encode("utf-8", "surrogateescape")
        if len(command) >= abi.MAX_GUEST_CMDLINE:
            raise InputError(f"the command line has {len(command)} bytes; "
                             f"{abi.MAX_GUEST_CMDLINE - 1} is the limit of a Xen domain")
        if b"\0" in command:
            raise InputError("the command line holds a NUL character")
        return command

    def _take(self, pages: int) -> int:
        """The next ``pages`` page frames; gives the first. Raises InputError with none left."""
        first = self.next
        self.next += pages
        if self.next > self.nr_pages:
            reason = ""
            if self.ramdisk:
                reason = f" ({megabytes(self.ramdisk.size)} of it for {self.ramdisk.name})"
            raise InputError(f"{self.name}: needs more than {self.nr_pages >> 8}M of memory as a "
                             f"Xen domain{reason}")
        return first

    def _take_tables(self, count: int) -> tuple[int, ...]:
        first = self._take(count)
        return tuple(range(first, first + count))

    def _place_ramdisk(self, ramdisk: Image) -> tuple[int, int]:
        first = self._take(-(-ramdisk.size // abi.PAGE_SIZE))
        at = first << 12
        ramdisk.read_into(0, self.ram.view[at:at + ramdisk.size])
        return first, ramdisk.size

    def _main_map(self) -> tuple[_Map, dict[int, int]]:
        """The initial region: it must hold its own page tables, the boot stack and the padding."""
        base = self.notes.virt_base
        extra = 1 + (_PADDING >> 12)
        pages = extra
        while True:
            end = base + (self.next + pages << 12)
            end = (end + _REGION_END - 1) & -_REGION_END
            if end > 1 << 64:
                raise InputError(f"{self.name}: does not fit behind its VIRT_BASE {base:#x}")
            region = _Map(base, end, 0)
            counts = {level: region.tables(level)[1] for level in _LEVELS}
            pages = sum(counts.values()) + extra
            if base + (self.next + pages << 12) <= end:
                return region, counts

    def _set_entry(self, table: int, index: int, value: int) -> None:
        struct.pack_into("<Q", self.ram.view, (table << 12) + index * 8, value)

    def _write_tables(self, region: _Map, tables: dict[int, tuple[int, ...]],
                      read_only: range = range(0)) -> None:
        """Fill the tables of ``region``; frames in ``read_only`` are mapped without write."""
        for level in (4, 3, 2):
            first, _ = region.tables(level)
            below, count = region.tables(level - 1)
            for number in range(count):
                index = below + number
                table = tables[level][(index >> 9) - first]
                self._set_entry(table, index & 511, tables[level - 1][number] << 12 | _TABLE)
        pages = region.end - region.start >> 12
        start = region.pfn << 12 | _LEAF
        leaves = array("Q", range(start, start + (pages << 12), abi.PAGE_SIZE))
        for pfn in read_only:
            leaves[pfn - region.pfn] &= ~_WRITE
        at = (tables[1][0] << 12) + (region.start >> 12 & 511) * 8
        self.ram.write(at, memoryview(leaves).cast("B"))


def _write_m2p(frames: XenFrames, identity: array[int]) -> tuple[int, int]:
    """The machine-to-physical table and its page tables; its first frame, and the L4 entry.

    It is mapped twice: from the start of its slot, which is where the ABI has it, and from
    `m2p_window` on, which is where XENMEM_machphys_mapping says it is.
    """
    ram = frames.ram
    pages = m2p_pages(frames.nr_pages)
    m2p = frames.allocate(pages)
    frames.readonly = range(m2p, m2p + pages)
    # INVALID_M2P_ENTRY for what no page has.
    ram.write(m2p << 12, b"\xff" * (pages << 12))
    ram.write(m2p << 12, memoryview(identity).cast("B"))
    window = m2p_window(frames.nr_pages)
    counts = table_pages(window + pages)
    first = frames.allocate(counts[0])
    entries = array("Q", range(m2p << 12 | _M2P, m2p + pages << 12 | _M2P, abi.PAGE_SIZE))
    for page in (0, window):
        ram.write((first << 12) + 8 * page, memoryview(entries).cast("B"))
    for below, tables in pairwise(counts):
        table = frames.allocate(tables)
        entries = array("Q", range(first << 12 | _M2P, first + below << 12 | _M2P, abi.PAGE_SIZE))
        ram.write(table << 12, memoryview(entries).cast("B"))
        first = table
    return m2p, first << 12 | _M2P


def hypercall_page() -> bytes:
    """The page of stubs a guest calls: 128 slots of 32 bytes (<xen/arch-x86/xen-x86_64.h>).

    A hypercall is SYSCALL with the number in EAX; it destroys RCX and R11, which the stub saves.
    ``iret`` never returns, so it leaves them and RAX on the stack as part of the iret frame.
    """
    page = bytearray()
    for number in range(abi.PAGE_SIZE // _SLOT):
        call = b"\xb8" + struct.pack("<I", number) + b"\x0f\x05"
        if number == _IRET:
            code = b"\x51\x41\x53\x50" + call
        else:
            code = b"\x51\x41\x53" + call + b"\x41\x5b\x59\xc3"
        page += code.ljust(_SLOT, b"\xcc")
    return bytes(page)
