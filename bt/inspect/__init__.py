# SPDX-License-Identifier: GPL-2.0-or-later
"""``bt inspect``: what the translator did to a guest, shown.

``listing`` puts a block's original and rewritten instructions side by side, ``select`` finds
blocks, ``text`` shows them in a terminal, ``browse`` is
the interactive view, ``page`` the HTML one.
"""
