# SPDX-License-Identifier: GPL-2.0-or-later
"""``bt run --virtio``: what virtio devices are on, and the module by which Linux finds them."""

from __future__ import annotations

from collections.abc import Iterable

#: The driver of each transport that can be chosen. Lists of modules name that of PCI, the default.
DRIVERS = {"pci": "virtio_pci", "mmio": "virtio_mmio"}


def modules(names: Iterable[str], transport: str) -> list[str]:
    """``names`` with the driver of ``transport`` in place of PCI's."""
    return [DRIVERS[transport] if name == DRIVERS["pci"] else name for name in names]
