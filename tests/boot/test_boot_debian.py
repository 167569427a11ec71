# SPDX-License-Identifier: GPL-2.0-or-later
"""Debian's own kernels, where this machine has them: installed, or fetched before by ``bt run``."""

import os
from pathlib import Path

import pytest
from bootimages import MB

from bt import usercache
from bt.boot import load, payload
from bt.errors import InputError
from bt.machine.ram import Ram

# Read at import: the tests themselves get an empty cache folder.
KERNELS = [path for path in (*sorted(Path("/boot").glob("vmlinuz-*")),
                             *sorted(usercache.need("debian").glob("**/vmlinuz*")))
           if path.is_file() and os.access(path, os.R_OK)]

pytestmark = pytest.mark.slow


@pytest.mark.skipif(not KERNELS, reason="no Debian kernel is installed or fetched")
@pytest.mark.parametrize("path", KERNELS, ids=lambda path: path.name)
def test_debian_kernel(path, cache, monkeypatch):
    first, second = Ram(160 * MB), Ram(160 * MB)
    loaded = load(path, first, cmdline="console=ttyS0")
    assert loaded.kind == "linux bzImage" and loaded.entry.bits == 64
    release = loaded.description.split()[1]
    assert f"Linux version {release} ".encode() in first.read(16 * MB, 64 * MB)
    assert len(list(cache.glob("*.elf"))) == 1
    monkeypatch.setattr(payload, "unpack", None)        # the second boot comes from the cache
    assert load(path, second, cmdline="console=ttyS0") == loaded
    assert first.view == second.view
    with pytest.raises(InputError, match=r"needs at least \d+M of RAM, but the machine has 32M"):
        load(path, Ram(32 * MB))
