# SPDX-License-Identifier: GPL-2.0-or-later
"""Kept names are the decoded ones; what is damaged is decoded anew."""

from __future__ import annotations

from pathlib import Path

import pytest

from bt.errors import InputError
from bt.symbols import cache
from bt.symbols.table import SymbolTable

MAP = "".join(f"{0xffffffff81000000 + 16 * i:016x} T function_{i}\n" for i in range(20_000))


def content(table: SymbolTable) -> tuple[object, ...]:
    return list(table.items()), table.sections, table.source, table.lowest, table.highest


def test_kept_and_read_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    path = tmp_path / "System.map"
    path.write_text(MAP)
    decoded = content(cache.of_file(path))
    assert content(cache.cached_of_file(path)) == decoded
    kept, = (tmp_path / "cache").rglob("*.json")
    monkeypatch.setattr(cache, "of_file", None)         # not asked again
    table = cache.cached_of_file(path)
    assert content(table) == decoded
    assert table.lookup(0xffffffff81000012) == ("function_1", 2)
    monkeypatch.undo()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    for damage in (b"", b"{}", b"[1]", kept.read_bytes()[:-9], b'{"symbols": [[1]]}'):
        kept.write_bytes(damage)
        assert content(cache.cached_of_file(path)) == decoded
    path.write_text(MAP[:-40])                          # another file of the same name
    assert content(cache.cached_of_file(path)) == content(cache.of_file(path)) != decoded


def test_what_cannot_be_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    path = tmp_path / "System.map"
    path.write_text(MAP)
    assert len(cache.cached_of_file(path)) == 20_000
    with pytest.raises(InputError):
        cache.cached_of_file(tmp_path / "none")
