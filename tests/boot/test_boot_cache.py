# SPDX-License-Identifier: GPL-2.0-or-later
"""The cache of unpacked kernels: it saves unpacking, and never changes what is loaded."""

import os
import random

import pytest
from bootimages import MB, bzimage, elf, pack, segment

from bt.boot import load, payload, unpack_cache
from bt.machine.ram import Ram

CODE = random.Random("code").randbytes(3 * 4096)
IMAGE = bzimage(pack(elf([segment(MB, CODE)]), "gzip")) + bytes(64)     # room for another payload


@pytest.fixture(autouse=True)
def cache_all(monkeypatch):
    monkeypatch.setattr(payload, "MIN_CACHED", 0)


@pytest.fixture
def settled(monkeypatch):
    """Files count as settled as soon as they are written."""
    monkeypatch.setattr(unpack_cache, "SETTLED_NS", 0)


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


def test_second_boot_does_not_unpack_or_hash(kernel, cache, unpacked, settled, monkeypatch):
    path = kernel(IMAGE)
    assert boots(path) and len(unpacked) == 1
    monkeypatch.setattr(unpack_cache.FileImage, "sha256", None)
    assert boots(path) and len(unpacked) == 1
    assert sorted(p.suffix for p in cache.iterdir()) == ["", ".elf"]


def test_same_kernel_in_another_file(kernel, cache, unpacked, settled):
    assert boots(kernel(IMAGE)) and boots(kernel(IMAGE, "copy")) and len(unpacked) == 1
    assert len(list((cache / "by-stat").iterdir())) == 2


def test_changed_file_is_unpacked_again(kernel, unpacked):
    path = kernel(IMAGE)
    assert boots(path)
    before = path.stat()
    other = bzimage(pack(elf([segment(MB, CODE[::-1])]), "gzip")).ljust(len(IMAGE))
    assert len(other) == len(IMAGE)
    path.write_bytes(other)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))     # its ctime may be equal too
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
    monkeypatch.setattr("os.path.expanduser", lambda path: path)
    assert boots(kernel(IMAGE)) and len(unpacked) == 1


def test_cache_does_not_grow_for_ever(kernel, cache, settled, monkeypatch):
    monkeypatch.setattr(unpack_cache, "KEEP", 2)
    for number in range(4):
        load(kernel(IMAGE + bytes([number]), f"kernel{number}"), Ram(4 * MB))
    assert len(list(cache.glob("*.elf"))) == 2
    assert len(list((cache / "by-stat").iterdir())) == 2


def test_damaged_kernel_is_not_kept(kernel, cache):
    with pytest.raises(payload.InputError):
        load(kernel(bzimage(pack(b"no ELF file" * 10, "gzip"))), Ram(4 * MB))
    assert not list(cache.glob("*.elf"))


def test_kernel_that_changes_while_it_is_read_is_not_kept(kernel, cache, monkeypatch):
    monkeypatch.setattr(unpack_cache.FileImage, "changed", lambda self: True)
    assert boots(kernel(IMAGE))
    assert not list(cache.glob("*.elf"))


def test_changed(kernel):
    path = kernel(IMAGE)
    os.utime(path, ns=(1, 1))
    with unpack_cache.FileImage(path) as image:
        assert not image.changed()
        while path.stat().st_ctime_ns == image.status.st_ctime_ns:     # until the clock ticks
            path.write_bytes(b"other")
        assert image.changed()
