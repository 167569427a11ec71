# SPDX-License-Identifier: GPL-2.0-or-later
"""PE files: Windows drivers and kernels, EFI programs (Microsoft PE Format), read by lief.

Names are the exported ones and, where there are any, COFF symbols. Drivers without symbols still
say where most of their functions begin: in the exception directory.
"""

from __future__ import annotations

import lief

from bt.boot.image import Image
from bt.errors import InputError
from bt.scan.files import Binary, NotCode, Region, contents, starts_of
from bt.symbols.table import Symbol, SymbolTable

_BITS = {0x14C: 32, 0x8664: 64}
_MACHINES = {0x1C0: "ARM", 0x1C4: "ARM", 0xAA64: "aarch64", 0x200: "Itanium", 0x5064: "RISC-V",
             0xEBC: "EFI byte code"}
_CODE, _EXECUTE = 0x20, 0x2000_0000         # IMAGE_SCN_CNT_CODE, IMAGE_SCN_MEM_EXECUTE
_NATIVE, _USER = (1,), (2, 3, 5, 7, 9)      # IMAGE_SUBSYSTEM_*
_EFI = {10: "EFI application", 11: "EFI boot driver", 12: "EFI runtime driver", 13: "EFI ROM"}
_MAX_NAMES = 1 << 20


def read(image: Image, names: SymbolTable | None) -> Binary:
    """The code of a PE file. ``names``: to use instead of its own. Raises InputError."""
    data = image.read(0, image.size)
    machine, subsystem = _header(image.name, data)
    bits = _BITS.get(machine)
    if bits is None:
        what = _MACHINES.get(machine, f"machine type {machine:#x}")
        raise InputError(f"{image.name}: is for {what}, not for x86")
    lief.logging.disable()
    options = lief.PE.ParserConfig()
    options.parse_signature = options.parse_rsrc = options.parse_imports = False
    options.parse_reloc = False
    options.parse_exceptions = True
    file = lief.PE.parse(data, options)
    if file is None:
        raise InputError(f"{image.name}: is a damaged PE file")
    base = file.optional_header.imagebase
    table = names or _names(file, base)
    entries = _entries(file, base, bits)
    regions = []
    for number, section in enumerate(file.sections):
        size = min(section.sizeof_raw_data, section.virtual_size or section.sizeof_raw_data)
        if not section.characteristics & (_CODE | _EXECUTE) or not size:
            continue
        name = _printable(section.name) or f"section {number}"
        code = contents(image, name, section.pointerto_raw_data, size)
        start = base + section.virtual_address & (1 << 64) - 1
        known = starts_of(table, start, size)
        known += tuple(a - start for a in entries if start <= a < start + size)
        regions.append(Region(name, start, bits, code, table, known))
    kind, what = _kind(file, subsystem)
    return Binary(kind, f"{bits}-bit PE {what}", bits, table.source if table else "",
                  tuple(regions))


def _header(name: str, data: bytes) -> tuple[int, int]:
    """(machine, subsystem): two numbers that lief gives only where it knows them."""
    at = int.from_bytes(data[0x3C:0x40], "little")
    if data[at:at + 4] != b"PE\0\0":
        raise NotCode(f"{name}: is a DOS program, not a PE file")
    if at + 96 > len(data):
        raise InputError(f"{name}: cut short in its PE header")
    return (int.from_bytes(data[at + 4:at + 6], "little"),
            int.from_bytes(data[at + 92:at + 94], "little"))


def _kind(file: lief.PE.Binary, subsystem: int) -> tuple[str, str]:
    exports = file.get_export() if file.has_exports else None
    name = _printable(exports.name).lower() if exports is not None else ""
    if subsystem in _NATIVE or name in ("ntoskrnl.exe", "ntkrnlmp.exe", "hal.dll"):
        kernel = name in ("ntoskrnl.exe", "ntkrnlmp.exe")
        return ("kernel", "kernel") if kernel else ("driver", "driver")
    if subsystem in _EFI:
        return "driver", _EFI[subsystem]
    return "program", "program"


def _names(file: lief.PE.Binary, base: int) -> SymbolTable:
    found = []
    exports = file.get_export() if file.has_exports else None
    if exports is not None:
        for entry in exports.entries:
            if entry.name and not entry.is_forwarded and len(found) < _MAX_NAMES:
                found.append(Symbol(base + entry.address, _printable(entry.name)))
    sections = [(s.virtual_address, s.virtual_size) for s in file.sections]
    for symbol in file.symbols:
        index, name = symbol.section_idx - 1, _printable(symbol.name)
        if 0 <= index < len(sections) and symbol.value < sections[index][1] and \
                name and not name.startswith(".") and len(found) < _MAX_NAMES:
            found.append(Symbol(base + sections[index][0] + symbol.value, name))
    return SymbolTable(found, source="PE")


def _entries(file: lief.PE.Binary, base: int, bits: int) -> list[int]:
    """Where functions begin by the exception directory, which 64-bit code has to have."""
    if bits != 64:
        return []
    return [base + entry.rva_start for entry in file.exceptions]


def _printable(text: str | bytes) -> str:
    """A name as lief has it: bytes where it is no UTF-8."""
    if isinstance(text, bytes):
        text = text.decode("latin-1")
    text = text[:512]
    return text if text.isprintable() else "".join(c if c.isprintable() else "?" for c in text)
