# SPDX-License-Identifier: GPL-2.0-or-later
"""Layouts of the struct module, to hold against those of a C compiler."""

from __future__ import annotations

import re
import struct


def offsets(layout: str) -> list[int]:
    """Where each field of a struct format begins."""
    found, at = [], 0
    for count, code in re.findall(r"(\d*)([a-zA-Z])", layout):
        repeat = 1 if code in "sx" else int(count or 1)
        size = struct.calcsize("<" + (count if code in "sx" else "") + code)
        for _ in range(repeat):
            if code != "x":
                found.append(at)
            at += size
    return found
