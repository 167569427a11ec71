# SPDX-License-Identifier: GPL-2.0-or-later
from __future__ import annotations

import sys
from types import ModuleType

import pytest
from fake_machine import FakeMachine


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """An empty cache folder of our own."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "ring1" / "debian"


@pytest.fixture
def linux_files(cache):
    """A cache that already holds a "kernel" and a "busybox"."""
    kernel = cache / "linux-image-cloud-amd64" / "vmlinuz-6.1.0-fake"
    busybox = cache / "busybox-static" / "busybox"
    for path, data in ((kernel, b"kernel"), (busybox, b"\x7fELF\0[\0[[\0ash\0cat\0busybox\0\0")):
        path.parent.mkdir(parents=True)
        path.write_bytes(data)
    return kernel, busybox


@pytest.fixture
def machine(monkeypatch):
    """FakeMachine in place of the real one; its class, to set ``guest`` and look at ``made``."""

    class Fresh(FakeMachine):
        made: list[FakeMachine] = []

    module = ModuleType("bt.machine.machine")
    module.Machine = Fresh
    monkeypatch.setitem(sys.modules, "bt.machine.machine", module)
    return Fresh
