# SPDX-License-Identifier: GPL-2.0-or-later
"""The cache of unpacked kernels: it saves unpacking, and never changes what is loaded."""

import os

import pytest
from bootimages import MB, bzimage, elf, pack, segment

from bt.boot import load, payload, unpack_cache
from bt.machine.ram import Ram

CODE = os.urandom(3 * 4096)
IMAGE = bzimage(pack(elf([segment(MB, CODE)]), "gzip"))


@pytest.fixture(autouse=True)
def cache_all(monkeypatch):
    monkeypatch.setattr(payload, "MIN_CACHED", 0)


@pytest.fixture
def unpacked(monkeypatch):
    """Counts how often a kernel is unpacked."""
    calls = []
    real = payload.unpack
    monkeypatch.setattr(payload, "unpack", lambda *args: calls.append(1) or real(*args))
    return calls


def boots(path):
    ram = Ram(4 * MB)
    load(path, ram)
    return ram.read(MB, len(CODE)) == CODE


def test_second_boot_does_not_unpack_or_hash(kernel, cache, unpacked, monkeypatch):
    path = kernel(IMAGE)
    assert boots(path) and len(unpacked) == 1
    monkeypatch.setattr(unpack_cache.FileImage, "sha256", None)
    assert boots(path) and len(unpacked) == 1
    assert sorted(p.suffix for p in cache.iterdir()) == ["", ".elf"]


def test_same_kernel_in_another_file(kernel, cache, unpacked):
    assert boots(kernel(IMAGE)) and boots(kernel(IMAGE, "copy")) and len(unpacked) == 1
    assert len(list((cache / "by-stat").iterdir())) == 2


def test_changed_file_is_unpacked_again(kernel, unpacked):
    path = kernel(IMAGE)
    assert boots(path)
    before = path.stat()
    other = bzimage(pack(elf([segment(MB, CODE[::-1])]), "gzip")).ljust(len(IMAGE))[:len(IMAGE)]
    path.write_bytes(other)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))     # ctime still tells
    assert not boots(path) and len(unpacked) == 2


@pytest.mark.parametrize("damage", [b"", b"short"])
def test_short_file_is_not_used(kernel, cache, unpacked, damage):
    path = kernel(IMAGE)
    assert boots(path)
    next(cache.glob("*.elf")).write_bytes(damage)
    assert boots(path) and len(unpacked) == 2
    assert boots(path) and len(unpacked) == 2       # and was replaced


def test_unusable_cache_is_no_cache(kernel, tmp_path, monkeypatch, unpacked):
    (tmp_path / "file").write_text("not a folder")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    path = kernel(IMAGE)
    assert boots(path) and boots(path) and len(unpacked) == 2


def test_no_home(kernel, monkeypatch, unpacked):
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")
    monkeypatch.setattr(unpack_cache.Path, "home", lambda: (_ for _ in ()).throw(RuntimeError()))
    assert boots(kernel(IMAGE)) and len(unpacked) == 1


def test_cache_does_not_grow_for_ever(kernel, cache, monkeypatch):
    monkeypatch.setattr(unpack_cache, "KEEP", 2)
    for number in range(4):
        load(kernel(IMAGE + bytes([number]), f"kernel{number}"), Ram(4 * MB))
    assert len(list(cache.glob("*.elf"))) == 2
    assert len(list((cache / "by-stat").iterdir())) == 2


def test_damaged_kernel_is_not_kept(kernel, cache):
    with pytest.raises(payload.InputError):
        load(kernel(bzimage(pack(b"no ELF file" * 10, "gzip"))), Ram(4 * MB))
    assert not list(cache.glob("*.elf"))
