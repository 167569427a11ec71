# SPDX-License-Identifier: GPL-2.0-or-later
"""Two deterministic runs print the same bytes and count the same exits."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from bt.machine.machine import Machine
from guests import image


def run_twice(name: str, engine: str) -> list[tuple]:
    runs = []
    for _ in range(2):
        out = bytearray()
        machine = Machine(engine=engine, ram_bytes=64 << 20, deterministic=True,
                          console=out.extend)
        machine.load(image(name))
        outcome = machine.run(60)
        stats = machine.stats.to_json()
        runs.append((outcome, bytes(out), machine.vcpu.counters(), stats["virtual_s"],
                     stats["exits"]))
    return runs


@pytest.mark.parametrize("engine", ["bt", "trap"])
@pytest.mark.parametrize("name", ["hello", "tasks"])
def test_sample_guests_repeat_exactly(name: str, engine: str) -> None:
    first, second = run_twice(name, engine)
    assert first[0].kind in ("powered-off", "halted")
    assert first[1]
    assert first == second


@pytest.mark.slow
def test_linux_repeats_exactly(tmp_path) -> None:
    """The whole boot, in two processes of their own: same output, same exits, same virtual time."""
    runs = []
    for number in range(2):
        stats = tmp_path / f"{number}.json"
        done = subprocess.run(
            [sys.executable, "-m", "bt", "run", "linux", "--deterministic", "--stats", str(stats),
             "--", "sh", "-c", "dmesg; cat /proc/interrupts; date; uname -a"],
            capture_output=True, timeout=300, check=True)
        found = json.loads(stats.read_text())
        runs.append((done.stdout, done.stderr, found["exits"], found["virtual_s"]))
    assert b"Linux version" in runs[0][0]
    assert runs[0] == runs[1]
