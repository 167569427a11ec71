# SPDX-License-Identifier: GPL-2.0-or-later
"""Paravirtual devices after OASIS Virtual I/O Device (VIRTIO) version 1.2, modern interface only.

``queue`` is the ring both sides share, ``device`` what every device has, ``registers`` how a driver
drives one, ``pci`` and ``mmio`` how it finds them; then one file a device.
"""

#: What virtio devices can be on: pci.py, mmio.py.
TRANSPORTS = ("pci", "mmio")
