# SPDX-License-Identifier: GPL-2.0-or-later
"""Tests of engine kvm. Those marked ``kvm`` need a usable /dev/kvm, and are skipped without one."""

from __future__ import annotations

import functools
import sys
from pathlib import Path

import pytest

from bt.engines import ENGINES

sys.path.insert(0, str(Path(__file__).parents[1] / "core"))


@functools.cache
def unusable() -> str | None:
    return ENGINES["kvm"].open().unusable()


@pytest.fixture(autouse=True)
def _needs_kvm(request: pytest.FixtureRequest) -> None:
    if request.node.get_closest_marker("kvm") and unusable():
        pytest.skip(unusable())
