# SPDX-License-Identifier: GPL-2.0-or-later
"""The devices of a PC, one file each. Start with :mod:`bt.devices.pc`.

A device takes what it needs (clock, timers, interrupt line, callbacks) as arguments and puts
itself on the bus. Values from the guest are untrusted: no sequence of accesses may raise.
"""
