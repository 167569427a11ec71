# SPDX-License-Identifier: GPL-2.0-or-later
"""A short run of tools/fuzz_virtio.py for each device."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).resolve().parents[2]


def fuzzer() -> ModuleType:
    if "fuzz_virtio" not in sys.modules:
        spec = importlib.util.spec_from_file_location("fuzz_virtio",
                                                      ROOT / "tools" / "fuzz_virtio.py")
        assert spec is not None and spec.loader is not None
        module = sys.modules["fuzz_virtio"] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
    return sys.modules["fuzz_virtio"]


@pytest.mark.parametrize("name", sorted(fuzzer().SUBJECTS))
def test_a_driver_that_lies_does_no_harm(name: str):
    steps, served, stops = fuzzer().fuzz(name, 2.0, seed=1)
    assert steps > 100 and served > 10 and stops > 5
