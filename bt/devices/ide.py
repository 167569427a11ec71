# SPDX-License-Identifier: GPL-2.0-or-later
"""The PCI function that tells a kernel where the ATA channel is: Intel's PIIX3 IDE interface.

Source: Intel 82371SB (PIIX3) data sheet, 2.3 and 3. In compatibility mode it decodes the ports that
a PC has had since 1984, and says so by its class code. It has no bus master registers, so drivers
use programmed I/O. Kernels without PCI, or without this function, look at the ports themselves.
"""

from __future__ import annotations

from bt.devices.pci import PciFunction

# IDE Timing Registers, primary and secondary: bit 15 says that the channel's ports are decoded.
_IDETIM_PRIMARY = 0x40
_DECODE_ENABLE = 0x80


class PciIde(PciFunction):
    """PIIX3 IDE, primary channel only, compatibility mode."""

    def __init__(self) -> None:
        super().__init__(0x8086, 0x7010, 0x010100)
        self.config[_IDETIM_PRIMARY + 1] = _DECODE_ENABLE
