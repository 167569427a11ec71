# SPDX-License-Identifier: GPL-2.0-or-later
"""Names of a kernel file, kept in the user's cache once they are decoded.

A Debian kernel's 87,000 names take 0.4 s to decode and a third of that to read back. The cache is a
convenience: what is damaged, unreadable or cannot be written is decoded anew.
"""

from __future__ import annotations

import json
import os
import tempfile
from pathlib import Path

from bt import usercache
from bt.symbols import of_file
from bt.symbols.table import Section, Symbol, SymbolTable

_VERSION = 1
_MIN_SYMBOLS = 10_000   # fewer are decoded as fast as they are read


def cached_of_file(path: Path) -> SymbolTable:
    """As bt.symbols.of_file. Raises InputError."""
    folder = usercache.find("symbols")
    try:
        stat = path.stat()
    except OSError:
        folder = None           # of_file says what is wrong with it
    if folder is None:
        return of_file(path)
    kept = folder / f"{path.name}-{stat.st_size:x}-{stat.st_mtime_ns:x}.{_VERSION}.json"
    try:
        return _read(kept)
    except (OSError, ValueError, TypeError, KeyError):
        table = of_file(path)
    if len(table) >= _MIN_SYMBOLS:
        _write(kept, table)
    return table


def _read(path: Path) -> SymbolTable:
    data = json.loads(path.read_bytes())
    return SymbolTable(map(Symbol._make, data["symbols"]), source=data["source"],
                       sections=map(Section._make, data["sections"]), lowest=data["lowest"],
                       highest=data["highest"])


def _write(path: Path, table: SymbolTable) -> None:
    data = {"symbols": list(table.items()), "source": table.source, "sections": table.sections,
            "lowest": table.lowest, "highest": table.highest}
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        # Another process may be writing the same: the rename makes the last one win whole.
        with tempfile.NamedTemporaryFile(dir=path.parent, delete=False) as file:
            file.write(json.dumps(data, separators=(",", ":")).encode())
        os.replace(file.name, path)
    except OSError:
        pass
