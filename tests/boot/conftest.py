# SPDX-License-Identifier: GPL-2.0-or-later
from pathlib import Path

import pytest


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache folder for each test; gives the folder that unpacked kernels go to."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "ring1" / "vmlinux"


@pytest.fixture
def kernel(tmp_path: Path):
    """A function that writes bytes to a file and gives its path."""
    def write(data: bytes, name: str = "kernel") -> Path:
        path = tmp_path / name
        path.write_bytes(data)
        return path
    return write
