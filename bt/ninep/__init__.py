# SPDX-License-Identifier: GPL-2.0-or-later
"""A 9P2000.L file server over one folder of the host, for a guest that is not trusted.

``wire`` is the messages, ``folder`` the only code that touches the host's files, ``dents`` reads
its directories, ``attributes`` shows a file's data as the protocol does, ``server`` answers. How
the messages come here is somebody else's business (bt/virtio/ninep.py).
"""
