# SPDX-License-Identifier: GPL-2.0-or-later
"""Paravirtual devices after OASIS Virtual I/O Device (VIRTIO) version 1.2, modern interface only.

``queue`` is the ring both sides share, ``device`` what every device has, ``pci`` how a driver finds
and drives one; then one file a device.
"""
