# SPDX-License-Identifier: GPL-2.0-or-later
"""The initial RAM disk of Linux, and the module of multiboot: checked and placed in RAM."""

from __future__ import annotations

from pathlib import Path

from bt.boot.image import BytesImage, FileImage, Image
from bt.boot.lowmem import PAGE, megabytes
from bt.boot.payload import method_of
from bt.errors import InputError
from bt.machine.ram import Ram

_CPIO = (b"070701", b"070702")
_CPIO_HEADER = 110
# What a kernel also takes as a RAM disk: (offset, magic) of squashfs, ROMFS, cramfs and ext2.
_FILE_SYSTEMS = ((0, b"hsqs"), (0, b"-rom1fs-"), (0, b"\x45\x3d\xcd\x28"), (0x438, b"\x53\xef"))


def open_initrd(initrd: Path | str | bytes) -> Image:
    """The initrd as an image, not empty. Raises InputError."""
    image: Image
    if isinstance(initrd, (bytes, bytearray, memoryview)):
        image = BytesImage("initrd", initrd)
    else:
        image = FileImage(Path(initrd))
    if image.size == 0:
        image.close()
        raise InputError(f"{image.name}: the initrd is empty")
    return image


def check_linux(image: Image) -> None:
    """Raise InputError if no Linux kernel can unpack or mount this.

    Finds wrong files and cut-short cpio archives; what is inside of a compressed one stays the
    kernel's business, as unpacking it here would cost every boot as much as it costs the kernel.
    """
    head = image.head(0x43A)
    if head.startswith(_CPIO):
        _check_cpio(image)
    elif not method_of(head) and not any(head[at:at + len(magic)] == magic
                                         for at, magic in _FILE_SYSTEMS):
        raise InputError(f"{image.name}: is not an initrd (cpio archive, compressed or not)")


def _check_cpio(image: Image) -> None:
    """Follow the entries of the first archive (Linux, buffer-format.rst) to its trailer."""
    at = 0
    while True:
        if at + _CPIO_HEADER > image.size:
            raise InputError(f"{image.name}: the cpio archive is cut short at byte {image.size}")
        header = image.read(at, _CPIO_HEADER)
        try:
            size, name_size = int(header[54:62], 16), int(header[94:102], 16)
        except ValueError:
            size = name_size = -1
        if not header.startswith(_CPIO) or size < 0 or name_size < 1:
            raise InputError(f"{image.name}: the cpio archive is damaged at byte {at}")
        name_at = at + _CPIO_HEADER
        data_at = name_at + name_size + 3 & ~3
        if data_at + size > image.size + 3:     # an archive may end without its last padding
            raise InputError(f"{image.name}: the cpio archive is cut short at byte {image.size}")
        if size == 0 and name_size == 11 and image.read(name_at, 10) == b"TRAILER!!!":
            return
        at = data_at + size + 3 & ~3


def place(image: Image, ram: Ram, low: int, high: int) -> tuple[int, int]:
    """Copy it to the highest page between ``low`` and ``high``; gives its address and size.

    High, so that it is out of the way of what the kernel allocates early. Raises InputError if it
    does not fit.
    """
    top = min(ram.low_end, high)
    start = (top - image.size) & -PAGE
    if start < low:
        room = max(top - low, 0)
        raise InputError(
            f"{image.name}: the initrd has {megabytes(image.size)}, but only {room >> 20}M are "
            f"free beside the kernel in {ram.low_end >> 20}M of RAM")
    image.read_into(0, ram.view[start:start + image.size])
    return start, image.size
