# SPDX-License-Identifier: GPL-2.0-or-later
"""Kernel modules for the initramfs: what is read from them, in which order they are packed."""

from __future__ import annotations

import gzip
import lzma
from pathlib import Path

import pytest
import zstandard

from bt.errors import InputError
from guests.linux.modules import Modules, dependencies, info

RELEASE = "6.1.0-9-amd64"


def module(depends: str = "", **more: str) -> bytes:
    strings = [f"depends={depends}", *(f"{key}={value}" for key, value in more.items())]
    return b"\x7fELF" + bytes(60) + b"\0".join(s.encode() for s in strings) + bytes(9)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "kernel/drivers").mkdir(parents=True)
    for name, data in {
        "virtio_ring.ko": module(),
        "virtio.ko.xz": lzma.compress(module("virtio_ring")),
        "virtio_blk.ko.zst": zstandard.compress(module("virtio,virtio_ring")),
        "virtio-rng.ko.gz": gzip.compress(module("virtio")),
        "a.ko": module("b"), "b.ko": module("a"),
        "soft.ko": module("", softdep="pre: virtio-rng post: a"),
    }.items():
        (tmp_path / "kernel/drivers" / name).write_bytes(data)
    return tmp_path


def names(archive: bytes) -> list[str]:
    """File names in a cpio archive, in order."""
    found, at = [], 0
    while at < len(archive):
        if archive[at:at + 6] != b"070701":
            at += 4
            continue
        size, length = int(archive[at + 54:at + 62], 16), int(archive[at + 94:at + 102], 16)
        found.append(archive[at + 110:at + 109 + length].decode())
        at = (at + 110 + length + 3 & ~3) + size + 3 & ~3
    return found


def test_dependencies_are_read() -> None:
    assert info(module("x,y", vermagic="6.1 SMP"), "vermagic") == ["6.1 SMP"]
    assert dependencies(module("x,y")) == ["x", "y"]
    assert dependencies(module("", softdep="pre: one two post: three")) == ["one", "two"]
    assert dependencies(module("", softdep="post: three")) == []


def test_what_is_needed_comes_first(folder: Path) -> None:
    modules = Modules(folder, RELEASE)
    order = list(modules.closure(["virtio-blk", "virtio_rng"]))
    assert order == ["virtio_ring", "virtio", "virtio_blk", "virtio_rng"]
    assert list(modules.closure(["soft"])) == ["virtio_ring", "virtio", "virtio_rng", "soft"]
    assert set(modules.closure(["a"])) == {"a", "b"}, "a circle ends"
    assert not modules.closure(["ext4"]), "built in"


def test_the_archive(folder: Path) -> None:
    archive = Modules(folder, RELEASE).archive(["virtio_blk", "ext4"])
    home = f"lib/modules/{RELEASE}"
    assert names(archive) == [
        "ring1", "lib", "lib/modules", home, f"{home}/virtio_ring.ko", f"{home}/virtio.ko",
        f"{home}/virtio_blk.ko", f"{home}/modules.dep", "ring1/modules", "TRAILER!!!"]
    assert b"virtio_blk.ko: virtio.ko virtio_ring.ko\n" in archive
    assert archive.count(module()) == 1, "unpacked"
    assert b"virtio_blk\n" in archive and b"ext4" not in archive


@pytest.mark.parametrize("suffix", ["xz", "gz", "zst"])
def test_a_damaged_module_is_one_line(tmp_path: Path, suffix: str) -> None:
    (tmp_path / f"x.ko.{suffix}").write_bytes(b"damaged")
    with pytest.raises(InputError, match="cannot read"):
        Modules(tmp_path, RELEASE).archive(["x"])
