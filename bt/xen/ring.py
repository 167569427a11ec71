# SPDX-License-Identifier: GPL-2.0-or-later
"""A byte ring in a page shared with the guest: what console and xenstore have in common.

Indices count bytes and never wrap to the ring's size, a power of two. Whether they make sense is
for the caller to check: at most ``size`` bytes may be read or written at a time.
"""

from __future__ import annotations


def read(view: memoryview, base: int, size: int, index: int, length: int) -> bytes:
    """``length`` bytes from ``index`` on, out of the ring of ``size`` bytes at ``base``."""
    ring = bytes(view[base:base + size])
    start = index % size
    return (ring[start:] + ring[:start])[:length]


def write(view: memoryview, base: int, size: int, index: int, data: bytes | bytearray) -> None:
    """Put ``data`` into the ring from ``index`` on."""
    start = index % size
    head = data[:size - start]
    view[base + start:base + start + len(head)] = head
    view[base:base + len(data) - len(head)] = data[len(head):]
