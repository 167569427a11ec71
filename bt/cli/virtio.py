# SPDX-License-Identifier: GPL-2.0-or-later
"""``bt run --virtio``: the module by which Linux finds devices on what was chosen."""

from __future__ import annotations

from collections.abc import Iterable


def modules(names: Iterable[str], transport: str) -> list[str]:
    """``names``, which have PCI's driver for virtio, with that of ``transport`` in its place."""
    return [f"virtio_{transport}" if name == "virtio_pci" else name for name in names]
