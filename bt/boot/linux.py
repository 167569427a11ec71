# SPDX-License-Identifier: GPL-2.0-or-later
"""Linux: bzImage or bare ELF vmlinux, by the 64-bit or the 32-bit boot protocol.

Sources: Documentation/arch/x86/boot.rst (protocol and setup header, quoted as "boot.rst") and
zero-page.rst (struct boot_params). We are the boot loader and the decompressor in one: the ELF file
inside of the bzImage goes to its physical addresses and is entered at its e_entry (startup_64 or
startup_32 of head_64.S or head_32.S), as the kernel's own decompressor would have done it. It is
not relocated: the addresses it is linked for are free in our machine, so no KASLR either.
"""

from __future__ import annotations

import struct
from typing import NamedTuple

from bt.boot import elf, initrd, lowmem, payload
from bt.boot.entry import EntryState, Loaded
from bt.boot.image import FileImage, Image
from bt.errors import InputError
from bt.machine.ram import Ram

# Offsets of the setup header: the same in the bzImage and in boot_params (boot.rst).
_HEADER = 0x1F1
_SETUP_SECTS = 0x1F1
_BOOT_FLAG = 0x1FE
_JUMP_LENGTH = 0x201
_MAGIC = 0x202
_VERSION = 0x206
_KERNEL_VERSION = 0x20E
_TYPE_OF_LOADER = 0x210
_LOADFLAGS = 0x211
_RAMDISK_IMAGE = 0x218
_CMD_LINE_PTR = 0x228
_INITRD_ADDR_MAX = 0x22C
_KERNEL_ALIGNMENT = 0x230
_CMDLINE_SIZE = 0x238
_HARDWARE_SUBARCH = 0x23C
_PAYLOAD_OFFSET = 0x248
_SETUP_DATA = 0x250
_PREF_ADDRESS = 0x258
_INIT_SIZE = 0x260
_HEADER_MAX = 0x290         # end of the room for the header in boot_params

# Offsets in boot_params only (zero-page.rst).
_ACPI_RSDP_ADDR = 0x70
_E820_ENTRIES = 0x1E8
_E820_TABLE = 0x2D0
_BOOT_PARAMS_SIZE = 0x1000

_LOADED_HIGH = 0x01
_KASLR_FLAG = 0x02
_UNKNOWN_LOADER = 0xFF
_PROTOCOL_PAYLOAD = 0x208   # the first that says where the payload is
_PROTOCOL_INIT_SIZE = 0x20A
_BARE_PROTOCOL = 0x20F
_BARE_CMDLINE = 2047
_BARE_INITRD_MAX = 0x7FFFFFFF
_SECTOR = 512


def is_bzimage(head: bytes) -> bool:
    """True if a file that begins with ``head`` (0x206 bytes or more) has a Linux setup header."""
    return (head[_MAGIC:_MAGIC + 4] == b"HdrS"
            and head[_BOOT_FLAG:_BOOT_FLAG + 2] == b"\x55\xaa")


def payload_length(head: bytes) -> int:
    """Bytes of the packed kernel, by the setup header in ``head``."""
    return int.from_bytes(head[_PAYLOAD_OFFSET + 4:_PAYLOAD_OFFSET + 8], "little")


class Room(NamedTuple):
    """How far up a kernel may reach, in bytes, where no machine's RAM says so."""

    low_end: int


class Kernel(NamedTuple):
    """A kernel to boot, whatever it came in."""

    image: Image            # the ELF file
    header: bytes           # the setup header, from offset 0x1f1 on
    kind: str
    description: str
    end: int                # the first byte after what the kernel needs at boot

    def field(self, offset: int, form: str) -> int:
        return struct.unpack_from(form, self.header, offset - _HEADER)[0]


def load(image: FileImage, ram: Ram, cmdline: str, ramdisk: Image | None,
         rsdp: int = 0) -> Loaded:
    """Put a kernel, its boot_params, command line and initrd into RAM. Raises InputError."""
    kernel = open_kernel(image, ram)
    with kernel.image:
        vmlinux = elf.parse(kernel.image)
        _check_class(image.name, vmlinux)
        end = max(kernel.end, vmlinux.end) + lowmem.PAGE - 1 & -lowmem.PAGE
        elf.check_fits(image.name, end, ram, ramdisk)
        elf.load_segments(kernel.image, vmlinux, ram)
    bits = vmlinux.bits
    placed = 0, 0
    if ramdisk:
        initrd.check_linux(ramdisk)
        placed = initrd.place(ramdisk, ram, end, kernel.field(_INITRD_ADDR_MAX, "<I") + 1)
    command = lowmem.write_cmdline(ram, cmdline, kernel.field(_CMDLINE_SIZE, "<I"))
    ram.write(lowmem.INFO, _boot_params(kernel.header, ram, command, placed, rsdp))
    gdt_base, gdt_limit = lowmem.write_gdt(ram, bits)
    entry = EntryState(
        bits=bits, rip=vmlinux.entry, rsp=lowmem.STACK_TOP, regs={"rsi": lowmem.INFO},
        cr3=lowmem.write_identity_tables(ram) if bits == 64 else 0,
        gdt_base=gdt_base, gdt_limit=gdt_limit, cs=lowmem.CS, ds=lowmem.DS)
    return Loaded(entry, kernel.kind, f"{kernel.description}, {bits}-bit")


def open_kernel(image: FileImage, ram: Ram | Room) -> Kernel:
    """The ELF file that a bzImage holds, or that ``image`` is. Raises InputError."""
    return _open_bzimage(image, ram) if is_bzimage(image.head(0x206)) else _open_elf(image)


def _check_class(name: str, vmlinux: elf.Elf) -> None:
    expected = elf.EM_X86_64 if vmlinux.bits == 64 else elf.EM_386
    if vmlinux.machine != expected:
        raise InputError(f"{name}: {vmlinux.bits}-bit ELF file for machine type {vmlinux.machine} "
                         "is not a Linux kernel")


def _open_elf(image: FileImage) -> Kernel:
    """A bare vmlinux: no setup header, so the one a current bzImage has (boot.rst)."""
    header = bytearray(_HEADER_MAX - _HEADER)
    for offset, form, value in (
            (_BOOT_FLAG, "<H", 0xAA55), (_MAGIC, "4s", b"HdrS"), (_VERSION, "<H", _BARE_PROTOCOL),
            (_LOADFLAGS, "<B", _LOADED_HIGH), (_INITRD_ADDR_MAX, "<I", _BARE_INITRD_MAX),
            (_KERNEL_ALIGNMENT, "<I", 2 << 20), (_CMDLINE_SIZE, "<I", _BARE_CMDLINE)):
        struct.pack_into(form, header, offset - _HEADER, value)
    return Kernel(image, bytes(header), "linux ELF", "ELF kernel", end=0)


def _open_bzimage(image: FileImage, ram: Ram | Room) -> Kernel:
    """Read the setup header, and unpack what it describes."""
    name = image.name
    header_end = min(_MAGIC + image.read(_JUMP_LENGTH, 1)[0], _HEADER_MAX)
    header = image.read(_HEADER, max(header_end, _VERSION + 2) - _HEADER)
    header = header.ljust(_HEADER_MAX - _HEADER, b"\0")
    get = Kernel(image, header, "linux bzImage", "", 0).field
    protocol = get(_VERSION, "<H")
    if protocol < _PROTOCOL_PAYLOAD:
        raise InputError(f"{name}: boot protocol {protocol >> 8}.{protocol & 0xff:02} is too old; "
                         "2.08 (Linux 2.6.26) is needed")
    if header_end < _PAYLOAD_OFFSET + 8 or not get(_LOADFLAGS, "<B") & _LOADED_HIGH:
        raise InputError(f"{name}: its setup header is damaged, or it is not a bzImage")
    end = 0
    limit = ram.low_end
    if protocol >= _PROTOCOL_INIT_SIZE:
        # init_size is what the kernel needs from its start on, unpacking included, so nothing
        # larger can come out.
        limit = get(_INIT_SIZE, "<I")
        end = get(_PREF_ADDRESS, "<Q") + limit
        elf.check_fits(name, end, ram)
    sectors = get(_SETUP_SECTS, "<B") or 4      # boot.rst: 0 means 4
    start = (sectors + 1) * _SECTOR + get(_PAYLOAD_OFFSET, "<I")
    packed = payload.find(image, start, get(_PAYLOAD_OFFSET + 4, "<I"), limit)
    inner = payload.unpacked(image, packed)
    version = _version(image, get(_KERNEL_VERSION, "<H"))
    return Kernel(inner, header, "linux bzImage", f"Linux {version} ({packed.method})", end)


def _version(image: Image, pointer: int) -> str:
    """The release in the version string that the header points to ("6.1.0-...")."""
    at = pointer + _SECTOR
    if pointer == 0 or at >= image.size:
        return "of unknown version"
    text = image.read(at, min(64, image.size - at)).split(b"\0")[0].split(b" ")[0]
    release = text.decode("ascii", "replace")
    return release if release.isprintable() and release else "of unknown version"


def _boot_params(header: bytes, ram: Ram, cmdline: int, ramdisk: tuple[int, int],
                 rsdp: int) -> bytes:
    """struct boot_params. What stays 0 is said to be absent: screen, APM, EDD, EFI.

    All addresses here are below 4 GiB, so the ext_ upper halves stay 0 too.
    """
    params = bytearray(_BOOT_PARAMS_SIZE)
    params[_HEADER:_HEADER + len(header)] = header
    flags = params[_LOADFLAGS] & ~_KASLR_FLAG | _LOADED_HIGH
    for offset, form, value in (
            (_TYPE_OF_LOADER, "<B", _UNKNOWN_LOADER), (_LOADFLAGS, "<B", flags),
            (_CMD_LINE_PTR, "<I", cmdline), (_HARDWARE_SUBARCH, "<I", 0), (_SETUP_DATA, "<Q", 0)):
        struct.pack_into(form, params, offset, value)
    struct.pack_into("<II", params, _RAMDISK_IMAGE, *ramdisk)
    struct.pack_into("<Q", params, _ACPI_RSDP_ADDR, rsdp)
    regions = lowmem.memory_map(ram)
    params[_E820_ENTRIES] = len(regions)
    for index, region in enumerate(regions):
        struct.pack_into("<QQI", params, _E820_TABLE + 20 * index, *region)
    return bytes(params)
