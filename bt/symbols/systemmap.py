# SPDX-License-Identifier: GPL-2.0-or-later
"""``System.map``, ``/proc/kallsyms`` and nm(1)'s output: ``address letter name [module]`` a line.
"""

from __future__ import annotations

import re

from bt.boot.image import Image
from bt.errors import InputError
from bt.symbols.table import Symbol, SymbolTable

_LINE = re.compile(rb"([0-9a-fA-F]{8,16}) ([A-Za-z?]) (\S{1,512})(?:[\t ]+\[(\S{1,64})\])?\s*")
_MAX_BYTES = 256 << 20
#: Debian's System.map is one line that says where the real one is, at this address.
_NOWHERE = (1 << 64) - 1


def looks_like(head: bytes) -> bool:
    """Whether a file that begins with ``head`` is one."""
    return _LINE.fullmatch(head.partition(b"\n")[0]) is not None or _is_debian_note(head)


def read(image: Image) -> SymbolTable:
    """The symbols of such a file. Raises InputError, with a line number, for anything else."""
    if image.size > _MAX_BYTES:
        raise InputError(f"{image.name}: is larger than {_MAX_BYTES >> 20} MB")
    data = image.read(0, image.size)
    if _is_debian_note(data):
        raise InputError(f"{image.name}: has no symbols: Debian ships the real System.map in the "
                         "-dbg package")
    symbols = []
    for number, line in enumerate(data.splitlines(), 1):
        match = _LINE.fullmatch(line)
        if match is None:
            if not line.strip():
                continue
            raise InputError(f"{image.name}: line {number} is not 'address letter name'")
        address, kind, name, _ = match.groups()
        text = name.decode("ascii", "replace")
        if text.isprintable():
            symbols.append(Symbol(int(address, 16), text, 0, kind.decode()))
    if symbols and not any(s.address for s in symbols):
        raise InputError(f"{image.name}: all addresses are zero: they are shown to root only")
    absolute = {s.name: s.address for s in symbols if s.name in ("_text", "_stext", "_end")}
    low = absolute.get("_text", absolute.get("_stext", 0))
    return SymbolTable(symbols, source=image.name, lowest=low)


def _is_debian_note(head: bytes) -> bool:
    first = head.partition(b"\n")[0]
    return first.startswith(b"%x " % _NOWHERE) and b"System.map" in first
