# SPDX-License-Identifier: GPL-2.0-or-later
"""Hostile guests never hurt the VMM: each ends in a defined outcome (see fuzz_core)."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent


def run(first: int, count: int, timeout: float) -> None:
    environment = dict(os.environ, PYTHONPATH=f"{HERE.parents[1]}:{HERE}")
    done = subprocess.run([sys.executable, str(HERE / "fuzz_core.py"), str(first), str(count)],
                          capture_output=True, text=True, timeout=timeout, env=environment)
    tail = "\n".join(done.stdout.splitlines()[-3:]) + "\n" + done.stderr[-2000:]
    assert done.returncode == 0 and done.stdout.endswith("done\n"), tail
    ends = {line.split()[-1] for line in done.stdout.splitlines()}
    assert {"died", "stopped"} <= ends, ends


def test_hostile_guests() -> None:
    run(0, 100, 120)


@pytest.mark.slow
def test_more_hostile_guests() -> None:
    run(100_000, 300, 600)
