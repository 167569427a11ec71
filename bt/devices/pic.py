# SPDX-License-Identifier: GPL-2.0-or-later
"""Two 8259A interrupt controllers, the second on line 2 of the first, as every PC has them.

Sources: Intel 8259A data sheet (231468); ELCR: Intel 82371 (PIIX) data sheet, 3.4.

A device drives a line high or low with :meth:`Pic8259Pair.set_irq`. An edge-triggered line makes a
request when it rises, a level-triggered one while it is high; either loses the request when the
line falls before it is acknowledged. The CPU sees one output, INTR, and asks for a vector with
:meth:`Pic8259Pair.acknowledge`. If the request has gone by then, the chip still has to answer:
with the vector of its line 7, and with no bit in service (the "spurious" interrupt).

Left out: MCS-80 mode (the CALL opcode), buffered mode, ICW1's level bit (a PC with an ELCR ignores
it), cascades other than line 2. There is no firmware: until the guest sends ICW1 all lines are
masked.
"""

from __future__ import annotations

from collections.abc import Callable

from bt.machine.bus import Bus

MASTER = 0x20
SLAVE = 0xA0
ELCR = 0x4D0
_CASCADE = 2
# Lines that no PC allows to be level-triggered: timer, keyboard, cascade; clock, coprocessor.
_ELCR_WRITABLE = (0xF8, 0xDE)


class _Chip:
    """One 8259A: its registers and its priority logic. It knows nothing of ports or partners."""

    def __init__(self) -> None:
        self.lines = 0  # input pins
        self.irr = 0  # requests
        self.isr = 0  # in service
        self.imr = 0xFF
        self.elcr = 0  # 1 = level-triggered
        self.base = 0
        self.top = 0  # the line of highest priority; 0 unless rotated
        self.icw = 0  # the next initialization word expected, 0 = none
        self.icw1 = 0
        self.auto_eoi = False
        self.rotate_on_auto_eoi = False
        self.special_mask = False
        self.fully_nested = False  # ICW4's special fully nested mode
        self.read_isr = False
        self.poll = False

    def drive(self, line: int, level: bool) -> None:
        """Input pin ``line`` is now ``level``."""
        bit = 1 << line
        if level:
            if not self.lines & bit:
                self.lines |= bit
                self.irr |= bit
        else:
            self.lines &= ~bit
            self.irr &= ~bit

    def _first(self, bits: int) -> int:
        """The highest-priority line of ``bits`` as its rank: 0 is the highest, 8 means none."""
        turned = ((bits >> self.top) | (bits << (8 - self.top))) & 0xFF
        return (turned & -turned).bit_length() - 1 if turned else 8

    def pending(self) -> int:
        """The line the chip wants served now, or -1."""
        wanted = self.irr & ~self.imr
        if not wanted:
            return -1
        serving = self.isr
        if self.special_mask:
            # A masked line in service holds nobody back, and the line itself may not nest.
            wanted &= ~serving
            serving &= ~self.imr
        elif self.fully_nested:
            # A second request of the slave may be more urgent than the one in service.
            serving &= ~(1 << _CASCADE)
        rank = self._first(wanted)
        if rank >= self._first(serving) or rank == 8:
            return -1
        return (rank + self.top) & 7

    def take(self, line: int) -> None:
        """The request of ``line`` is acknowledged: in service from now on."""
        bit = 1 << line
        if not self.elcr & bit:
            self.irr &= ~bit
        if not self.auto_eoi:
            self.isr |= bit
        elif self.rotate_on_auto_eoi:
            self.top = (line + 1) & 7

    def command(self, value: int) -> None:
        """A write at the even port: ICW1, OCW2 or OCW3."""
        if value & 0x10:
            self._icw1(value)
        elif value & 0x08:
            if value & 0x04:
                self.poll = True
            if value & 0x02:
                self.read_isr = bool(value & 0x01)
            if value & 0x40:
                self.special_mask = bool(value & 0x20)
        else:
            self._ocw2(value)

    def data(self, value: int) -> None:
        """A write at the odd port: ICW2-4 while initializing, else OCW1, the mask."""
        if self.icw == 2:
            self.base = value & 0xF8
            if not self.icw1 & 0x02:
                self.icw = 3
            else:
                self.icw = 4 if self.icw1 & 0x01 else 0
        elif self.icw == 3:
            self.icw = 4 if self.icw1 & 0x01 else 0
        elif self.icw == 4:
            self.fully_nested = bool(value & 0x10)
            self.auto_eoi = bool(value & 0x02)
            self.icw = 0
        else:
            self.imr = value

    def _icw1(self, value: int) -> None:
        """Start of initialization: also forgets edges, masks, priorities and ICW4's settings."""
        self.icw1 = value
        self.icw = 2
        self.irr = self.lines & self.elcr
        self.isr = self.imr = self.top = 0
        self.auto_eoi = self.rotate_on_auto_eoi = False
        self.special_mask = self.fully_nested = False
        self.read_isr = self.poll = False

    def _ocw2(self, value: int) -> None:
        """End of interrupt and rotation: bit 7 rotate, bit 6 names a line, bit 5 EOI."""
        rotate, specific, eoi = value & 0x80, value & 0x40, value & 0x20
        line = value & 0x07
        if eoi:
            if not specific:
                serving = self.isr & ~self.imr if self.special_mask else self.isr
                rank = self._first(serving)
                if rank == 8:
                    return
                line = (rank + self.top) & 7
            self.isr &= ~(1 << line)
            if rotate:
                self.top = (line + 1) & 7
        elif specific:
            if rotate:
                self.top = (line + 1) & 7
        else:
            self.rotate_on_auto_eoi = bool(rotate)


class Pic8259Pair:
    """Lines 0-15 in, INTR out, on ports 0x20-21, 0xa0-a1 and 0x4d0-4d1 (ELCR).

    ``on_intr(level)`` is called whenever the INTR output changes; it starts low. ``intr`` is its
    present level.
    """

    def __init__(self, bus: Bus, on_intr: Callable[[bool], None] | None = None) -> None:
        self.on_intr = on_intr
        self.intr = False
        self._bus = bus
        self._master = _Chip()
        self._slave = _Chip()
        for first in (MASTER, SLAVE, ELCR):
            bus.claim(self, first, 2)
        bus.publish(ELCR, 0)
        bus.publish(ELCR + 1, 0)
        self._publish_masks()

    def set_irq(self, line: int, level: bool) -> None:
        """Drive interrupt line ``line`` (0-15; 2 is the cascade and ignored) high or low."""
        if line < 8:
            if line == _CASCADE:
                return
            self._master.drive(line, level)
            self._drive_intr()
        else:
            self._slave.drive(line - 8, level)
            self._update()

    def set_level_triggered(self, line: int) -> None:
        """What firmware does for PCI's lines: set the bit in the ELCR."""
        port = ELCR + (line >> 3)
        self.write_port(port, 1, self.read_port(port, 1) | 1 << (line & 7))

    def acknowledge(self) -> int:
        """The CPU's interrupt acknowledge cycle: the vector (0-255) to deliver."""
        line = self._master.pending()
        if line < 0:
            return self._master.base + 7
        self._master.take(line)
        if line == _CASCADE:
            vector = self._slave.base + self._take_from(self._slave)
        else:
            vector = self._master.base + line
        self._update()
        return vector

    def _take_from(self, chip: _Chip) -> int:
        """Acknowledge ``chip`` alone; 7 if it wants nothing."""
        line = chip.pending()
        if line >= 0:
            chip.take(line)
        if chip is self._slave:
            # Its output falls with the acknowledge and rises again for the next request: the
            # master, edge-triggered, would otherwise miss that one.
            self._master.drive(_CASCADE, False)
        return line if line >= 0 else 7

    def _update(self) -> None:
        """Carry a change from the slave's output to the master's input to INTR."""
        self._master.drive(_CASCADE, self._slave.pending() >= 0)
        self._drive_intr()

    def _drive_intr(self) -> None:
        level = self._master.pending() >= 0
        if level != self.intr:
            self.intr = level
            if self.on_intr is not None:
                self.on_intr(level)

    def _publish_masks(self) -> None:
        """The mask reads back without side effect, unless the next read is a poll."""
        for first, chip in ((MASTER, self._master), (SLAVE, self._slave)):
            self._bus.publish(first + 1, None if chip.poll else chip.imr)

    def read_port(self, port: int, size: int) -> int:
        """IRR or ISR (even port), the mask (odd port), or the answer to a poll command."""
        if port >= ELCR:
            return (self._slave if port & 1 else self._master).elcr
        chip = self._slave if port >= SLAVE else self._master
        if chip.poll:
            # The read stands for the acknowledge cycle.
            chip.poll = False
            found = chip.pending() >= 0
            line = self._take_from(chip)
            self._publish_masks()
            self._update()
            return 0x80 | line if found else 0
        if port & 1:
            return chip.imr
        return chip.isr if chip.read_isr else chip.irr

    def write_port(self, port: int, size: int, value: int) -> None:
        """ICW1-4, OCW1-3, or the level/edge selection."""
        if port >= ELCR:
            which = port & 1
            chip = self._slave if which else self._master
            chip.elcr = value & _ELCR_WRITABLE[which]
            chip.irr |= chip.lines & chip.elcr
            self._bus.publish(port, chip.elcr)
        else:
            chip = self._slave if port >= SLAVE else self._master
            if port & 1:
                chip.data(value)
            else:
                chip.command(value)
            self._publish_masks()
        self._update()
