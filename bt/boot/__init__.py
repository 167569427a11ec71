# SPDX-License-Identifier: GPL-2.0-or-later
"""Loaders: each puts a guest into RAM the way its boot protocol says, and gives the entry state.

One file is one protocol (``linux``, ``pvh``, ``multiboot``, ``flat``); ``acpi`` is what firmware
leaves for all of them; ``elf``, ``payload``, ``initrd`` and ``lowmem`` hold what they share. All
input is hostile: whatever is wrong with it ends in one InputError, and memory use is bounded by the
machine's RAM and by the size of the file.

The protocols are imported when a kernel asks for them, and the decompressors when one has to be
unpacked: start-up time is part of what ``bt run`` is measured by.
"""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path

from bt.boot.entry import EntryState, Loaded
from bt.boot.image import FileImage
from bt.errors import InputError
from bt.machine.ram import Ram

__all__ = ["KINDS", "EntryState", "Loaded", "is_linux", "load"]

#: What ``kind`` may be. "flat" and "pvh" have to be asked for; the others are recognised.
KINDS = ("linux", "pvh", "multiboot", "flat")


def load(path: Path, ram: Ram, *, cmdline: str = "", initrd: Path | bytes | None = None,
         kind: str | None = None, base: int | None = None, bits: int | None = None,
         rsdp: int = 0) -> Loaded:
    """Load the kernel at ``path`` into ``ram``, which must be fresh (all zero).

    ``kind`` is one of KINDS, or None to recognise it. ``base`` (guest-physical) and ``bits`` (16,
    32 or 64) are for flat binaries only. ``rsdp`` is the guest-physical address of ACPI's root
    pointer, 0 if there is none. Raises InputError, with the file's name in the message.
    """
    with ExitStack() as files:
        image = files.enter_context(FileImage(Path(path)))
        if image.size == 0:
            raise InputError(f"{image.name}: is empty")
        if kind is None:
            kind = _recognise(image)
        if kind not in KINDS:
            raise InputError(f"unknown kind of kernel {kind!r}: one of {', '.join(KINDS)}")
        if kind != "flat" and (base is not None or bits is not None):
            raise InputError(f"{image.name}: base address and bits are for flat binaries only")
        if kind == "flat":
            if initrd is not None or cmdline:
                raise InputError(f"{image.name}: a flat binary takes no command line and no initrd")
            from bt.boot import flat
            return flat.load(image, ram, base=base, bits=bits)
        ramdisk = None
        if initrd is not None:
            from bt.boot.initrd import open_initrd
            ramdisk = files.enter_context(open_initrd(initrd))
        if kind == "pvh":
            from bt.boot import pvh
            return pvh.load(image, ram, cmdline, ramdisk, rsdp)
        if kind == "linux":
            from bt.boot import linux
            return linux.load(image, ram, cmdline, ramdisk, rsdp)
        from bt.boot import multiboot
        return multiboot.load(image, ram, cmdline, ramdisk)


def is_linux(path: Path) -> bool:
    """Whether a file is a Linux kernel, by its looks: a bzImage, or an ELF without multiboot.

    False for what cannot be read: the loader says what is wrong with it.
    """
    from bt.boot import elf, linux, multiboot
    try:
        with Path(path).open("rb") as file:
            head = file.read(multiboot.SEARCH)
    except OSError:
        return False
    if linux.is_bzimage(head):
        return True
    return head.startswith(elf.MAGIC) and multiboot.find_header(head) is None


# (offset, magic, what it is): kernels and files that people try, to name instead of just refuse.
_FOREIGN = (
    (0x38, b"ARM\x64", "a kernel for aarch64, not for x86"),
    (0x24, b"\x18\x28\x6f\x01", "a kernel for ARM, not for x86"),
    (0x38, b"RSC\x05", "a kernel for RISC-V, not for x86"),
    (4, b"zimg", "a compressed EFI kernel for another architecture, not a bzImage"),
    (0, b"MZ", "an EFI or Windows program, not a kernel this machine can boot"),
    (0, b"!<arch>", "an archive (a Debian package?), not a kernel"),
    (0, b"070701", "a cpio archive (an initrd?), not a kernel"),
)


def _recognise(image: FileImage) -> str:
    from bt.boot import elf, linux, multiboot, payload
    head = image.head(multiboot.SEARCH)
    if linux.is_bzimage(head):
        return "linux"
    if multiboot.find_header(head) is not None:
        return "multiboot"
    if head.startswith(elf.MAGIC):
        return "linux"
    for offset, magic, what in _FOREIGN:
        if head[offset:offset + len(magic)] == magic:
            raise InputError(f"{image.name}: is {what}")
    packed = payload.method_of(head)
    if packed:
        raise InputError(f"{image.name}: is a {packed} file; unpack it first")
    raise InputError(f"{image.name}: not a kernel that is known here (Linux bzImage or ELF, "
                     "multiboot; a flat binary has to be said so)")
