# SPDX-License-Identifier: GPL-2.0-or-later
"""A short piece of tools/fuzz_disks.py, and that it would see what it looks for."""

from __future__ import annotations

import importlib.util
import os
from pathlib import Path

import pytest

from bt.devices.disk import Disk
from bt.virtio.queue import Chain, Virtqueue

_SPEC = importlib.util.spec_from_file_location(
    "fuzz_disks", Path(__file__).parents[2] / "tools" / "fuzz_disks.py")
assert _SPEC is not None and _SPEC.loader is not None
fuzz = importlib.util.module_from_spec(_SPEC)
_SPEC.loader.exec_module(fuzz)


@pytest.mark.parametrize("name", fuzz.NAMES)
def test_nothing_wrong(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    pushed = []
    push = Virtqueue.push

    def note(self, chain, written):
        pushed.append(written)
        push(self, chain, written)

    monkeypatch.setattr(Virtqueue, "push", note)
    worlds = fuzz.run([name], 1.0, 1)
    if name != "ata":
        assert len(pushed) > 20 * worlds[name], "the fuzzer does not get far"


def test_a_write_that_was_not_announced_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    def writable(self, buffers):
        return [self._dma.ram[gpa:gpa + length] for gpa, length in buffers]

    monkeypatch.setattr(Chain, "_writable", writable)
    with pytest.raises(fuzz.Failure, match="not told"):
        fuzz.run(["blk"], 20.0, 1)


def test_a_write_outside_the_disk_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Disk, "_check", lambda self, views, offset: None)
    with pytest.raises((fuzz.Failure, OverflowError)):
        fuzz.run(["blk"], 20.0, 1)


def test_a_write_to_a_read_only_image_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    def writev(self, views, offset):
        if self.read_only:
            fd = os.open(self.path, os.O_RDWR)
            os.pwritev(fd, views, 0)
            os.close(fd)

    monkeypatch.setattr(Disk, "writev", writev)
    with pytest.raises(fuzz.Failure, match="read-only"):
        fuzz.run(["blk-ro"], 20.0, 1)
