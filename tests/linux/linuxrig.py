# SPDX-License-Identifier: GPL-2.0-or-later
"""``bt`` as a process of its own, for the tests that boot Debian's kernel."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
#: Seconds for a run that hangs. A boot takes one or two; a loaded machine may take far longer.
PATIENCE = 240
#: The engines under which Linux finds a PC. Under pv it is a Xen domain: tests/xen has the like.
PC_ENGINES = pytest.mark.parametrize("engine", ["bt", "hvm"])


def bt_command(*arguments: str) -> list[str]:
    """The argv of a ``bt`` process; argv[0] is an absolute path."""
    return [sys.executable, "-m", "bt", *arguments]


@dataclass(frozen=True)
class Result:
    """How a ``bt`` process ended; ``out`` and ``err`` are its output and errors, as text."""

    status: int
    out: str
    err: str
