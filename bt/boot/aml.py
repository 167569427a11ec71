# SPDX-License-Identifier: GPL-2.0-or-later
"""An assembler for AML, as far as the machine's own tables need it: each function gives bytes.

Source: ACPI 6.5, chapters 20 (AML) and 6.4 (resource data types). Names are at most one segment
with a prefix (``\\\\_S5_``, ``PCI0``): each becomes what 20.2.2 calls a NameString.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable


def name(path: str) -> bytes:
    """A name of one segment; ``\\\\`` in front makes it absolute. Short ones are padded with "_".
    """
    prefix, segment = (b"\\", path[1:]) if path.startswith("\\") else (b"", path)
    return prefix + segment.ljust(4, "_").encode("ascii")


def _package_length(body: bytes) -> bytes:
    """PkgLength (20.2.4): it counts its own bytes."""
    for count in (1, 2, 3):
        total = len(body) + count
        if total < (1 << 6 if count == 1 else 1 << 4 + 8 * (count - 1)):
            break
    else:
        raise ValueError("an AML object of more than 1 MB")
    if count == 1:
        return bytes((total,))
    return bytes(((count - 1) << 6 | total & 0xF,)) + (total >> 4).to_bytes(count - 1, "little")


def _sized(opcode: bytes, body: bytes) -> bytes:
    return opcode + _package_length(body) + body


def integer(value: int) -> bytes:
    """The shortest encoding (20.2.3)."""
    if value < 2:
        return bytes((value,))
    for prefix, size in ((0x0A, 1), (0x0B, 2), (0x0C, 4), (0x0E, 8)):
        if value < 1 << 8 * size:
            return bytes((prefix,)) + value.to_bytes(size, "little")
    raise ValueError(f"{value:#x} has more than 64 bits")


def text(value: str) -> bytes:
    """A string."""
    return b"\x0d" + value.encode("ascii") + b"\0"


def eisa_id(identity: str) -> bytes:
    """A compressed ID such as PNP0A03 (19.3.4)."""
    vendor = 0
    for letter in identity[:3]:
        vendor = vendor << 5 | ord(letter) - 0x40
    return integer(int.from_bytes(struct.pack(">HH", vendor, int(identity[3:], 16)), "little"))


def define(path: str, value: bytes) -> bytes:
    """Name (path, value)."""
    return b"\x08" + name(path) + value


def scope(path: str, *terms: bytes) -> bytes:
    return _sized(b"\x10", name(path) + b"".join(terms))


def device(path: str, *terms: bytes) -> bytes:
    return _sized(b"\x5b\x82", name(path) + b"".join(terms))


def method(path: str, arguments: int, *terms: bytes) -> bytes:
    """Method (path, arguments, NotSerialized)."""
    return _sized(b"\x14", name(path) + bytes((arguments,)) + b"".join(terms))


def package(elements: Iterable[bytes]) -> bytes:
    elements = list(elements)
    return _sized(b"\x12", bytes((len(elements),)) + b"".join(elements))


def buffer(data: bytes) -> bytes:
    return _sized(b"\x11", integer(len(data)) + data)


def argument(number: int) -> bytes:
    """Arg0 to Arg6."""
    return bytes((0x68 + number,))


def store(value: bytes, target: bytes) -> bytes:
    return b"\x70" + value + target


def returns(value: bytes) -> bytes:
    return b"\xa4" + value


def if_(condition: bytes, *terms: bytes) -> bytes:
    return _sized(b"\xa0", condition + b"".join(terms))


# Resources (6.4) ------------------------------------------------------------------------------

_CONSUMER, _PRODUCER = 1, 0
_FIXED = 0x0C               # minimum and maximum are fixed


def resources(*items: bytes) -> bytes:
    """ResourceTemplate: the items with their end tag, checksum not used."""
    return buffer(b"".join(items) + b"\x79\0")


def io_ports(first: int, count: int) -> bytes:
    """IO (Decode16) of ports that the device itself uses."""
    return struct.pack("<BBHHBB", 0x47, 1, first, first, 1, count)


def bus_range(first: int, last: int) -> bytes:
    """WordBusNumber that a bridge produces."""
    return _address_space("H", 0x88, 2, 0, first, last)


def io_range(first: int, last: int) -> bytes:
    """WordIO that a bridge produces: the entire range, not only the ISA part."""
    return _address_space("H", 0x88, 1, 3, first, last)


def memory_range(first: int, last: int) -> bytes:
    """DWordMemory or QWordMemory that a bridge produces: not cacheable, read and write."""
    wide = last >> 32
    return _address_space("Q" if wide else "I", 0x8A if wide else 0x87, 0, 1, first, last)


def memory_fixed(start: int, length: int) -> bytes:
    """Memory32Fixed, read and write, of a device (6.4.3.4)."""
    return struct.pack("<BHBII", 0x86, 9, 1, start, length)


def interrupt(number: int) -> bytes:
    """Interrupt of a device: level-triggered, active high, shared (6.4.3.6)."""
    return struct.pack("<BHBBI", 0x89, 6, _CONSUMER | 1 << 3, 1, number)


def _address_space(form: str, tag: int, kind: int, flags: int, first: int, last: int) -> bytes:
    """An address space descriptor (6.4.3.5): granularity, minimum, maximum, translation, length."""
    body = struct.pack("<BBB5" + form, kind, _FIXED | _PRODUCER, flags,
                       0, first, last, 0, last - first + 1)
    return struct.pack("<BH", tag, len(body)) + body
