# SPDX-License-Identifier: GPL-2.0-or-later
"""A short run of tools/fuzz_9p.py, and messages that are none."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bt.ninep import wire

ROOT = Path(__file__).resolve().parents[2]


def fuzzer() -> ModuleType:
    spec = importlib.util.spec_from_file_location("fuzz_9p", ROOT / "tools" / "fuzz_9p.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_random_requests_do_no_harm():
    sent, granted = fuzzer().fuzz(2.0, seed=1)
    assert sent > 1000 and granted > sent // 20


@given(st.sampled_from(sorted(wire.MESSAGES)), st.binary(max_size=100))
def test_anything_is_fields_or_malformed(number: int, data: bytes):
    layout = wire.MESSAGES[number].request
    try:
        fields = wire.unpack(layout, data)
    except wire.Malformed:
        return
    assert wire.pack(layout, fields) == data


def test_a_list_has_a_bound():
    with pytest.raises(wire.Malformed):
        wire.unpack("w", (17).to_bytes(2, "little") + bytes(34))
