# SPDX-License-Identifier: GPL-2.0-or-later
"""Names in traces and reports, of a guest whose file has symbols, and without."""

from __future__ import annotations

import io

import guests
from bt.machine.machine import Machine


def test_a_trace_has_names() -> None:
    stream = io.StringIO()
    machine = Machine(trace=stream, deterministic=True)
    machine.load(guests.image("hello"))
    assert machine.run(timeout=60).kind == "powered-off"
    first = stream.getvalue().splitlines()[0].split()
    assert first[2:] == ["CLI", "start"]
    table = machine.symbols()
    assert int(first[0], 16) == table.address("start")


def test_a_guest_without_symbols(tmp_path) -> None:
    path = tmp_path / "flat"
    path.write_bytes(b"\xfa\xf4")               # cli; hlt
    stream = io.StringIO()
    machine = Machine(trace=stream)
    machine.load(path, kind="flat", base=0x7C00, bits=16)
    assert machine.run(timeout=60).kind == "halted"
    assert stream.getvalue().splitlines()[0] == f"{0x7c00:016x} cpl0 CLI"
    assert not machine.symbols()
