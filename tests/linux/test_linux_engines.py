# SPDX-License-Identifier: GPL-2.0-or-later
"""One kernel file under every engine: ``uname -a`` prints what the file's own header says, or the
engine says why it cannot run Linux."""

from __future__ import annotations

import struct
from pathlib import Path

import pytest

from bt.engines import ENGINES


def named_by(kernel: Path) -> str:
    """What ``uname -a`` should print under ``kernel``, going by the version in its setup header
    ("RELEASE (who built it) VERSION"; Linux x86 boot protocol, kernel_version at 0x20e)."""
    head = kernel.read_bytes()[:0x10000]
    at = struct.unpack_from("<H", head, 0x20E)[0] + 0x200
    release, _, rest = head[at:head.index(0, at)].decode().partition(" (")
    return f"Linux (none) {release} {rest.partition(') ')[2]} x86_64 GNU/Linux\n"


@pytest.mark.parametrize("engine", [name for name in ENGINES if name != "trap"])
def test_uname(bt, debian, engine: str) -> None:
    kernel = debian[0]
    why = ENGINES[engine].open().unusable()
    if why:
        pytest.skip(why)
    result = bt("run", "linux", "--engine", engine, "--kernel", str(kernel), "--timeout", "120",
                "--", "uname", "-a")
    if engine == "kvm" and "engine kvm cannot run Linux here" in result.err:
        assert (result.status, result.out) == (2, "")
        pytest.skip(result.err.removeprefix("bt: ").strip())
    assert (result.status, result.out, result.err) == (0, named_by(kernel), "")


def test_trap_says_what_it_cannot_do_and_why(bt, debian) -> None:
    result = bt("run", "linux", "--engine", "trap", "--kernel", str(debian[0]), "--timeout", "60",
                "--", "uname", "-a")
    assert (result.status, result.out) == (3, "")
    assert "engine trap shows the holes" in result.err and "POPF" in result.err
    assert "bt: the guest died: " in result.err
    assert "Traceback" not in result.err
