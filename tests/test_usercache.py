# SPDX-License-Identifier: GPL-2.0-or-later
"""Where the user's cache is, by the XDG base directory specification."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

import bt
import guests
from bt import usercache
from bt.errors import InputError


def test_the_variable_says_where(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert usercache.find("x") == usercache.need("x") == tmp_path / "ring1" / "x"
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("value", [None, "", "relative", "./x", "~/x"])
def test_without_it_or_with_a_relative_one_it_is_at_home(
        value: str | None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    if value is None:
        monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    else:
        monkeypatch.setenv("XDG_CACHE_HOME", value)
    assert usercache.find("x") == usercache.need("x") == tmp_path / ".cache" / "ring1" / "x"


@pytest.fixture
def homeless(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also what expanduser gives a user without an entry in passwd: the path as it is."""
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")
    monkeypatch.setattr(usercache.os.path, "expanduser", lambda path: path)


def test_no_home(homeless: None) -> None:
    assert usercache.find("x") is None
    with pytest.raises(InputError, match="no home folder"):
        usercache.need("x")
    with pytest.raises(InputError, match="no home folder"):
        guests.image("hello")


def test_nobody_else_decides() -> None:
    root = Path(bt.__file__).parents[1]
    for folder in ("bt", "guests", "translator", "examples"):
        for path in (root / folder).rglob("*.py"):
            if path.name == "usercache.py":
                continue
            for node in ast.walk(ast.parse(path.read_text())):
                assert not isinstance(node, ast.Constant) or node.value != "XDG_CACHE_HOME", path
