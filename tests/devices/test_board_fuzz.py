# SPDX-License-Identifier: GPL-2.0-or-later
"""A short run of tools/fuzz_board.py, each time from another seed; and that it sees a fault."""

from __future__ import annotations

import random
import subprocess
import sys
from pathlib import Path

import pytest

from bt.devices.lapic import LocalApic

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "tools"))
import fuzz_board  # noqa: E402


def test_random_accesses_do_the_board_no_harm():
    done = subprocess.run([sys.executable, "tools/fuzz_board.py", "--seconds", "10"], cwd=ROOT,
                          capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "nothing wrong" in done.stdout


def test_it_would_see_a_lost_interrupt(monkeypatch):
    """An end of interrupt that does not look who waits."""
    monkeypatch.setattr(LocalApic, "_end_of_interrupt", lambda apic: setattr(apic, "_isr", 0))
    board = None
    with pytest.raises(AssertionError, match="INTR"):
        for seed in range(50):
            board = fuzz_board.Board(random.Random(seed))
            actions = (board.port, board.memory, board.memory, board.cr8, board.take, board.msr)
            for _ in range(2000):
                board.rng.choice(actions)()
                board.check()
