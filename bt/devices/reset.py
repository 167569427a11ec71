# SPDX-License-Identifier: GPL-2.0-or-later
"""Everything by which a guest stops its machine: four ways to reset it, one to switch it off.

Sources: port 0x92 and the 8042's pulse: IBM PS/2 Hardware Interface Technical Reference; 0xcf9:
Intel 82371 (PIIX) data sheet, 2.4; exit port: QEMU's isa-debug-exit with iobase=0x501.

======  =======================================================================
0x64    keyboard controller command: 0xf0-0xff with bit 0 clear pulse the reset line
0x92    bit 0 going 1 resets; bit 1 (A20) reads 1: the gate is always open
0xcf9   bit 2 going 1 resets
0x501   a byte written ends the machine with that status
======  =======================================================================

There is no keyboard. Port 0x64 reads as a constant that ends both of Linux's waits at once. Its
i8042 driver first drains the output buffer and, if "data there" (bit 0) is still set after 16
bytes, decides that there is no controller: under 1 ms, where a value with bit 0 clear costs it a
0.5 s timeout for a command's answer. Its reboot code waits up to 65,536 reads for "input buffer
full" (bit 1) to clear before it pulses the reset line. All ones except bit 1 serves both.

0xcf9 lies inside the PCI configuration ports 0xcf8-0xcff, which are absent: only a byte write
reaches it.
"""

from __future__ import annotations

from collections.abc import Callable

from bt.machine.bus import Bus

KBC = 0x64
FAST = 0x92
CF9 = 0xCF9
EXIT = 0x501
KBC_STATUS = 0xFD


class PowerControl:
    """Calls ``on_reset(source)`` ("i8042", "port 92" or "cf9") or ``on_exit(status)``.

    ``status`` is 0-255. Either call is made from inside the guest's port write.
    """

    wide = True  # so that wider writes are seen as such, and not split into bytes

    def __init__(self, bus: Bus, on_reset: Callable[[str], None] | None = None,
                 on_exit: Callable[[int], None] | None = None) -> None:
        self.on_reset = on_reset
        self.on_exit = on_exit
        self._bus = bus
        for port, reads_as in ((KBC, KBC_STATUS), (FAST, 0x02), (CF9, 0), (EXIT, 0xFF)):
            bus.claim(self, port, 1)
            bus.publish(port, reads_as)

    def read_port(self, port: int, size: int) -> int:
        """Byte reads are published; the bytes beyond read as ones."""
        return self._bus.value[port] | 0xFFFFFF00

    def write_port(self, port: int, size: int, value: int) -> None:
        """Reset or end the machine, if that is what was asked for."""
        low = value & 0xFF
        if port == EXIT:
            if self.on_exit is not None:
                self.on_exit(low)
        elif port == KBC:
            if low & 0xF1 == 0xF0:
                self._reset("i8042")
        elif port == FAST:
            if low & 1:
                self._reset("port 92")
        elif size == 1:
            if low & 4:
                self._reset("cf9")
            # The pulse is over by the time anybody can read it back.
            self._bus.publish(CF9, low & 0x0A)

    def _reset(self, source: str) -> None:
        if self.on_reset is not None:
            self.on_reset(source)
