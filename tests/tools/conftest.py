# SPDX-License-Identifier: GPL-2.0-or-later
"""The benchmark scripts are not a package: make them importable as their own folder has them."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

TOOLS = Path(__file__).resolve().parents[2] / "tools"
sys.path.append(str(TOOLS))


@pytest.fixture(params=["bench_boot.py", "bench_guest.py", "bench_exits.py"])
def script(request):
    """The path of each script in turn."""
    return TOOLS / request.param
