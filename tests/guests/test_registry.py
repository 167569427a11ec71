# SPDX-License-Identifier: GPL-2.0-or-later
"""The registry of sample guests and its cache of built images."""

from __future__ import annotations

import subprocess
import sys

import pytest

import guests


def test_every_guest_has_a_source_that_says_what_it_shows():
    for guest in guests.all_guests():
        lines = guest.source.read_text().splitlines()
        assert lines[1].startswith(f"; {guest.name}: ")
        assert guest.bits in (32, 64)
        assert "\n" not in guest.shows


def test_unknown_guest():
    with pytest.raises(KeyError):
        guests.get("nobody")


def test_image_is_built_once_and_is_multiboot(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    path = guests.image("hello")
    assert path.parent == tmp_path / "ring1" / "guests"
    assert (0x1BADB002).to_bytes(4, "little") in path.read_bytes()[:8192]
    before = path.stat().st_mtime_ns
    assert guests.image("hello") == path
    assert path.stat().st_mtime_ns == before
    assert [p.name for p in path.parent.iterdir()] == [path.name]


def test_a_cached_image_needs_no_assembler(tmp_path, monkeypatch):
    """The budget of `bt run hello` has no room for importing keystone."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    guests.image("hello")
    code = "import guests, sys; guests.image('hello'); sys.exit('keystone' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
