# SPDX-License-Identifier: GPL-2.0-or-later
"""The machine's devices and how they are wired: the small legacy PC every kernel can boot on.

====  ==========================  ===========================
line  device                      ports
====  ==========================  ===========================
0     8254 timer, channel 0       0x40-0x43, 0x61
3     COM2                        0x2f8-0x2ff
4     COM1 and COM3, shared       0x3f8-0x3ff, 0x3e8-0x3ef
8     MC146818 clock              0x70-0x71
-     8259A pair, ELCR            0x20-21, 0xa0-a1, 0x4d0-4d1
-     reset and exit              0x64, 0x92, 0xcf9, 0x501
-     debug console               0xe9
====  ==========================  ===========================

All else reads as ones and ignores writes, without an exit to Python: VGA, PCI, ATA, DMA, keyboard
data, floppy, the POST port, the coprocessor's error port. There is no firmware: the devices are as
after power-on, with all interrupts masked.
"""

from __future__ import annotations

from collections.abc import Callable
from types import MappingProxyType

from bt.devices.cmos import Cmos
from bt.devices.debugport import DebugPort
from bt.devices.pci import PciHost
from bt.devices.pic import Pic8259Pair
from bt.devices.pit import Pit8254
from bt.devices.reset import PowerControl
from bt.devices.uart import Uart
from bt.machine.bus import Bus
from bt.machine.timers import Clock, TimerQueue

COM1, COM2, COM3 = 0x3F8, 0x2F8, 0x3E8


def shared_line(drive: Callable[[bool], None], users: int) -> list[Callable[[bool], None]]:
    """``users`` inputs to one interrupt line, which is high while any of them is."""
    levels = [False] * users

    def user(number: int) -> Callable[[bool], None]:
        def set_level(level: bool) -> None:
            levels[number] = level
            drive(any(levels))
        return set_level

    return [user(number) for number in range(users)]


class LegacyPc:
    """Builds every device on ``bus``. They are attributes: pic, pit, com1-com3, cmos, power, debug.

    ``ram_size`` is in bytes, ``wallclock_s`` the date at power-on in seconds since 1970 (UTC).
    Set ``com1.on_output``, ``power.on_reset``, ``pic.on_intr`` and so on before the guest runs.
    """

    def __init__(self, clock: Clock, timers: TimerQueue, bus: Bus, ram_size: int, *,
                 wallclock_s: int = 0) -> None:
        self.pic = Pic8259Pair(bus)
        line = self.isa_line
        com1_irq, com3_irq = shared_line(line(4), 2)
        self.pit = Pit8254(bus, clock, timers, line(0))
        self.com1 = Uart(bus, COM1, com1_irq)
        self.com2 = Uart(bus, COM2, line(3))
        self.com3 = Uart(bus, COM3, com3_irq)
        self.cmos = Cmos(bus, clock, timers, line(8), ram_size=ram_size, wallclock_s=wallclock_s)
        self.power = PowerControl(bus)
        self.debug = DebugPort(bus)

    def isa_line(self, number: int) -> Callable[[bool], None]:
        """Interrupt line ``number`` (0-15) for one more device on the ISA bus."""
        return lambda level: self.pic.set_irq(number, level)

    def flush(self) -> None:
        """Hand on all collected output: call when the guest idles, stops, or now and then."""
        for port in (self.com1, self.com2, self.com3, self.debug):
            port.flush()


#: IRQs of the four PCI interrupt lines at the 8259s, which are level-triggered there.
PCI_IRQS = (10, 11, 10, 11)


class Pc(LegacyPc):
    """The same board with PCI: ``pci`` is the host bridge. PCI's lines are IRQ 10 and 11."""

    def __init__(self, clock: Clock, timers: TimerQueue, bus: Bus, ram_size: int, *,
                 wallclock_s: int = 0) -> None:
        super().__init__(clock, timers, bus, ram_size, wallclock_s=wallclock_s)
        irq10 = shared_line(lambda level: self.pic.set_irq(10, level), 2)
        irq11 = shared_line(lambda level: self.pic.set_irq(11, level), 2)
        for irq in PCI_IRQS:
            self.pic.set_level_triggered(irq)
        self.pci = PciHost(bus, (irq10[0], irq11[0], irq10[1], irq11[1]), PCI_IRQS)


#: What ``--machine`` can be, and what each is.
MACHINES = MappingProxyType({
    "pc": "a PC with PCI",
    "legacy": "8259, 8254, serial ports and a clock: what every kernel can boot on",
})
