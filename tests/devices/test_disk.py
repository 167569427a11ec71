# SPDX-License-Identifier: GPL-2.0-or-later
"""Disk images: the three ways to open one, locks, bounds, and the overlay against a plain model."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from bt.devices import disk as module
from bt.devices.disk import CLUSTER, OVERLAY, RO, RW, SECTOR, Disk
from bt.errors import InputError

SIZE = 5 * CLUSTER + 3 * SECTOR


@pytest.fixture
def image(tmp_path: Path) -> Path:
    path = tmp_path / "disk.img"
    path.write_bytes(bytes(i * 7 & 0xFF for i in range(SIZE)) + b"tail")
    return path


def read(disk: Disk, offset: int, length: int) -> bytes:
    data = bytearray(length)
    disk.readv([memoryview(data)[:length // 3], memoryview(data)[length // 3:]], offset)
    return bytes(data)


def write(disk: Disk, offset: int, data: bytes) -> None:
    disk.writev([memoryview(data)[:1], memoryview(data)[1:]], offset)


def test_what_is_written_is_in_the_file(image: Path) -> None:
    disk = Disk(image, RW)
    assert disk.size == SIZE and disk.sectors == SIZE // SECTOR
    write(disk, 512, b"x" * 1024)
    disk.flush()
    assert image.read_bytes()[512:1536] == b"x" * 1024
    assert image.read_bytes()[-4:] == b"tail", "what is no whole sector is left alone"


@pytest.mark.parametrize("mode", [RW, RO, OVERLAY])
def test_nothing_outside_the_disk(image: Path, mode: str) -> None:
    disk = Disk(image, mode)
    before = image.read_bytes()
    for offset, length in ((SIZE, 1), (SIZE - 511, 512), (-1, 1), (1 << 60, 512)):
        with pytest.raises(OSError):
            read(disk, offset, length)
        with pytest.raises(OSError):
            write(disk, offset, b"x" * length)
    assert image.read_bytes() == before


def test_read_only(image: Path) -> None:
    disk = Disk(image, RO)
    with pytest.raises(OSError):
        write(disk, 0, b"x" * 512)
    assert read(disk, 0, 512) == image.read_bytes()[:512]


@pytest.mark.parametrize(("first", "second", "good"), [
    (RW, RW, False), (RW, RO, False), (RW, OVERLAY, False), (RO, RW, False), (OVERLAY, RW, False),
    (RO, RO, True), (RO, OVERLAY, True), (OVERLAY, OVERLAY, True),
])
def test_locks(image: Path, first: str, second: str, good: bool) -> None:
    """Also between processes, and gone when the holder is."""
    disk = Disk(image, first)
    other = f"from bt.devices.disk import Disk; from pathlib import Path; " \
            f"Disk(Path({str(image)!r}), {second!r})"

    def try_it() -> subprocess.CompletedProcess[str]:
        return subprocess.run([sys.executable, "-c", other], capture_output=True, text=True)

    result = try_it()
    assert (result.returncode == 0) == good
    assert good or "in use by another machine" in result.stderr
    if good:
        Disk(image, second).close()
    else:
        with pytest.raises(InputError, match="in use"):
            Disk(image, second)
    disk.close()
    assert try_it().returncode == 0


def test_what_is_no_disk(tmp_path: Path) -> None:
    (tmp_path / "small").write_bytes(b"x" * 511)
    os.mkfifo(tmp_path / "fifo")
    for name in ("small", "fifo", "none", "."):
        with pytest.raises(InputError):
            Disk(tmp_path / name, RO)


def test_a_file_that_shrinks_is_an_error_not_a_loop(image: Path) -> None:
    disk = Disk(image, RW)
    os.truncate(image, 1024)
    with pytest.raises(OSError):
        read(disk, 512, 1024)
    assert read(disk, 0, 1024) == image.read_bytes()


def test_short_transfers_are_completed(image: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = os.preadv
    monkeypatch.setattr(module.os, "preadv",
                        lambda fd, views, offset: real(fd, [views[0][:100]], offset))
    disk = Disk(image, RO)
    assert read(disk, 100, 3000) == image.read_bytes()[100:3100]


@settings(max_examples=60, deadline=None,
          suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.tuples(st.booleans(), st.integers(0, SIZE), st.integers(1, 3 * CLUSTER)),
                max_size=12))
def test_an_overlay_is_a_disk(image: Path, operations: list[tuple[bool, int, int]]) -> None:
    """Any reads and writes give what a plain array would, and the image stays as it is."""
    before = image.read_bytes()
    disk = Disk(image, OVERLAY)
    model = bytearray(before[:SIZE])
    for number, (writes, offset, length) in enumerate(operations):
        length = min(length, SIZE - offset)
        if not length:
            continue
        if writes:
            data = bytes((number + i) & 0xFF for i in range(length))
            write(disk, offset, data)
            model[offset:offset + length] = data
        assert read(disk, offset, length) == model[offset:offset + length]
    assert read(disk, 0, SIZE) == model
    assert image.read_bytes() == before
    disk.close()
