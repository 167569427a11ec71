# SPDX-License-Identifier: GPL-2.0-or-later
"""Values that people type: sizes, times, addresses. Each raises ArgumentTypeError."""

from __future__ import annotations

import math
import re
from argparse import ArgumentTypeError

_UNITS = {"": 0, "k": 10, "m": 20, "g": 30}


def size(text: str) -> int:
    """Bytes from ``96M``, ``2G``, ``512MiB`` or a plain number; units are powers of 1024."""
    match = re.fullmatch(r"(\d{1,18})([kmg]?)(i?b)?", text.strip().lower(), re.ASCII)
    if match is None:
        raise ArgumentTypeError(f"not a size: {text!r} (say 256M or 2G)")
    return int(match[1]) << _UNITS[match[2]]


def seconds(text: str) -> float:
    """A time limit in seconds, above zero."""
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not (math.isfinite(value) and value > 0):
        raise ArgumentTypeError(f"not a number of seconds: {text!r}")
    return value


def address(text: str) -> int:
    """A guest-physical address, decimal or 0x hexadecimal."""
    try:
        value = int(text, 0)
    except ValueError:
        value = -1
    if value < 0:
        raise ArgumentTypeError(f"not an address: {text!r} (say 0x7c00)")
    return value


def whole(text: str) -> int:
    """A whole number from 0 on."""
    if not (text.isascii() and text.isdigit() and len(text) < 10):
        raise ArgumentTypeError(f"not a whole number: {text!r}")
    return int(text)
