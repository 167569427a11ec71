# SPDX-License-Identifier: GPL-2.0-or-later
"""What a guest's network card is plugged into: other guests, the host's TAP, a user-mode network.

All of them are a ``link.Link``: a descriptor that takes and gives one Ethernet frame a call, with
the header of virtio-net in front (``header``). Frames go between it and the guest's memory without
a copy in Python. ``peer``, ``tap`` and ``user`` (with ``slirp``) are the three kinds, ``offload``
does what a receiver cannot, ``options`` reads ``--net``.
"""
