# SPDX-License-Identifier: GPL-2.0-or-later
"""The machine's devices and how they are wired: two boards, of which every kernel boots on one.

``legacy`` is the PC of the eighties, with three serial ports:

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

``pc``, the default, has more (and PCI takes what is added to the machine):

====  ==========================  ===========================
-     local APIC                  0xfee00000
-     I/O APIC, 24 pins           0xfec00000
9     ACPI power management       0x600-0x605, 0x608-0x60b
10 11 PCI                         0xcf8, 0xcfc-0xcff
5-7   virtio devices, if not on   0xfed00000-0xfed1ffff
12    PCI
====  ==========================  ===========================

All else reads as ones and ignores writes, without an exit to Python: VGA, ATA, DMA, keyboard
data, floppy, the POST port, the coprocessor's error port. There is no firmware: the devices are as
after power-on, with all interrupts masked.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Protocol

from bt.devices import acpi_pm, ioapic, lapic
from bt.devices.acpi_pm import AcpiPm
from bt.devices.cmos import Cmos
from bt.devices.debugport import DebugPort
from bt.devices.ioapic import IoApic
from bt.devices.lapic import LocalApic
from bt.devices.pci import CONFIG_ADDRESS, CONFIG_DATA, HIGH_WINDOW, MEMORY_WINDOW, PciHost
from bt.devices.pic import Pic8259Pair
from bt.devices.pit import Pit8254
from bt.devices.reset import CF9, PowerControl
from bt.devices.uart import Uart
from bt.errors import InputError
from bt.machine import cpuid, msr
from bt.machine.bus import Bus
from bt.machine.cpu import VirtualCpu
from bt.machine.ram import Ram
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


class InterruptController(Protocol):
    """What stands between the board's interrupt lines and the CPU."""

    on_intr: Callable[[bool], None] | None
    intr: bool

    def acknowledge(self) -> int:
        """The CPU's interrupt acknowledge cycle: the vector (0-255) to deliver."""
        ...


class LegacyPc:
    """Builds every device on ``bus``. They are attributes: pic, pit, com1-com3, cmos, power, debug.

    ``ram_size`` is in bytes, ``wallclock_s`` the date at power-on in seconds since 1970 (UTC).
    Set ``com1.on_output``, ``power.on_reset``, ``pic.on_intr`` and so on before the guest runs.
    """

    def __init__(self, clock: Clock, timers: TimerQueue, bus: Bus, ram_size: int, *,
                 wallclock_s: int = 0) -> None:
        self.pic = Pic8259Pair(bus)
        com1_irq, com3_irq = shared_line(self.isa_line(4), 2)
        self.pit = Pit8254(bus, clock, timers, self.isa_line(0))
        self.com1 = Uart(bus, COM1, com1_irq)
        self.com2 = Uart(bus, COM2, self.isa_line(3))
        self.com3 = Uart(bus, COM3, com3_irq)
        self.cmos = Cmos(bus, clock, timers, self.isa_line(8), ram_size=ram_size,
                         wallclock_s=wallclock_s)
        self.power = PowerControl(bus)
        self.debug = DebugPort(bus)
        self.interrupts: InterruptController = self.pic
        self.pci: PciHost | None = None
        self.cr8_crossed: Callable[[], None] = lambda: None
        self.cpuid = cpuid.cpuid

    def connect(self, vcpu: VirtualCpu) -> None:
        """The interrupt controller's output is the INTR pin of ``vcpu``."""
        self.interrupts.on_intr = vcpu.set_intr

    def read_msr(self, index: int) -> int | None:
        """A model-specific register of the board's CPU; None raises #GP(0)."""
        return msr.read_msr(index)

    def write_msr(self, index: int, value: int) -> bool:
        """Whether the write is accepted; False raises #GP(0)."""
        return msr.write_msr(index, value)

    def on_power_off(self, power_off: Callable[[], None]) -> None:
        """What to call when the guest switches the board off: it has no way to."""

    def virtio_place(self, length: int) -> tuple[int, Callable[[bool], None]]:
        """Address and interrupt line for a virtio device that is not on PCI. Raises InputError."""
        raise InputError("virtio over MMIO needs --machine pc, whose ACPI tables say where it is")

    def install_firmware(self, ram: Ram) -> int:
        """What firmware leaves in RAM for a kernel: the address of the ACPI RSDP, or 0."""
        return 0

    def isa_line(self, number: int) -> Callable[[bool], None]:
        """Interrupt line ``number`` (0-15) for one more device on the ISA bus."""
        return lambda level: self.pic.set_irq(number, level)

    def flush(self) -> None:
        """Hand on all collected output: call when the guest idles, stops, or now and then."""
        for port in (self.com1, self.com2, self.com3, self.debug):
            port.flush()


#: IRQs of the four PCI interrupt lines at the 8259s, which are level-triggered there.
PCI_IRQS = (10, 11, 10, 11)
#: And the first of the four pins of the I/O APIC.
PCI_PIN = 16
SCI = 9
#: ISA interrupts that nothing else is on, for virtio devices that are not on PCI, in turns.
VIRTIO_IRQS = (5, 6, 7, 12)
#: Where those are, a page each, above the I/O APIC, and how many there can be.
VIRTIO_BASE, VIRTIO_DEVICES = 0xFED0_0000, 32
#: The 8254 is on pin 2 of the I/O APIC, as on every PC; the other ISA interrupts keep their number.
OVERRIDES = {0: 2}


class Pc(LegacyPc):
    """The board that came after: the same devices, and APICs, PCI and ACPI.

    ``lapic``, ``ioapic``, ``pci`` and ``pm`` besides. ISA interrupts go to the 8259s and to the I/O
    APIC; a kernel uses the one or the other.
    """

    def __init__(self, clock: Clock, timers: TimerQueue, bus: Bus, ram_size: int, *,
                 wallclock_s: int = 0) -> None:
        self._ioapic: IoApic | None = None
        super().__init__(clock, timers, bus, ram_size, wallclock_s=wallclock_s)
        self.lapic = LocalApic(bus, clock, timers, self.pic.acknowledge)
        self.pic.on_intr = self.lapic.set_lint0
        self.ioapic = self._ioapic = IoApic(bus, self.lapic.deliver)
        self.lapic.on_eoi = self.ioapic.eoi
        self.interrupts = self.lapic
        self.cr8_crossed = self.lapic.recheck
        self.cpuid = cpuid.apic_cpuid
        self.pic.set_level_triggered(SCI)
        self.pm = AcpiPm(bus, clock, timers, self.isa_line(SCI))
        self.pci = PciHost(bus, self._pci_lines(), PCI_IRQS)
        self.pci.on_message = self.lapic.message
        self._virtio: list[tuple[int, int, int]] = []
        self._virtio_lines = [shared_line(self.isa_line(irq), VIRTIO_DEVICES // len(VIRTIO_IRQS))
                              for irq in VIRTIO_IRQS]

    def isa_line(self, number: int) -> Callable[[bool], None]:
        pin = OVERRIDES.get(number, number)

        def drive(level: bool) -> None:
            self.pic.set_irq(number, level)
            if self._ioapic is not None:
                self._ioapic.set_irq(pin, level)

        return drive

    def virtio_place(self, length: int) -> tuple[int, Callable[[bool], None]]:
        """Address and interrupt line for a virtio device that is not on PCI, with ``length`` (up to
        4096) bytes of registers. Raises ValueError when all are given out.
        """
        number = len(self._virtio)
        if number == VIRTIO_DEVICES:
            raise ValueError(f"{number} of them are there")
        share, which = divmod(number, len(VIRTIO_IRQS))
        address, irq = VIRTIO_BASE + 0x1000 * number, VIRTIO_IRQS[which]
        self.pic.set_level_triggered(irq)
        self._virtio.append((address, length, irq))
        return address, self._virtio_lines[which][share]

    def _pci_lines(self) -> list[Callable[[bool], None]]:
        """Each line has a pin of the I/O APIC, and shares one of the 8259s."""
        shared = {irq: iter(shared_line(lambda level, irq=irq: self.pic.set_irq(irq, level),
                                        PCI_IRQS.count(irq))) for irq in set(PCI_IRQS)}

        def line(number: int) -> Callable[[bool], None]:
            to_pic = next(shared[PCI_IRQS[number]])

            def drive(level: bool) -> None:
                to_pic(level)
                self.ioapic.set_irq(PCI_PIN + number, level)

            return drive

        for irq in shared:
            self.pic.set_level_triggered(irq)
        return [line(number) for number in range(4)]

    def connect(self, vcpu: VirtualCpu) -> None:
        super().connect(vcpu)

        def write_cr8(value: int) -> None:
            vcpu.cr8 = value

        self.lapic.read_cr8 = lambda: vcpu.cr8
        self.lapic.write_cr8 = write_cr8
        self.lapic.watch_cr8 = vcpu.watch_cr8

    def read_msr(self, index: int) -> int | None:
        value = self.lapic.read_msr(index)
        return msr.read_msr(index) if value is None else value

    def write_msr(self, index: int, value: int) -> bool:
        if index == lapic.MSR_APIC_BASE:
            return self.lapic.write_msr(index, value)
        return msr.write_msr(index, value)

    def on_power_off(self, power_off: Callable[[], None]) -> None:
        self.pm.on_power_off = power_off

    def install_firmware(self, ram: Ram) -> int:
        from bt.boot import acpi  # costs what only this board needs
        assert self.pci is not None
        routes = {(slot, pin): (PCI_PIN + (slot + pin & 3), PCI_IRQS[slot + pin & 3])
                  for slot, pin in self.pci.pins()}
        return acpi.install(ram, acpi.Hardware(
            pm1_event=acpi_pm.PM1_EVENT, pm1_control=acpi_pm.PM1_CONTROL,
            pm_timer=acpi_pm.PM_TIMER, s5=acpi_pm.S5, sci=SCI, reset_port=CF9, reset_value=6,
            lapic=lapic.BASE, ioapic=ioapic.BASE, ioapic_id=ioapic.IDENTITY, overrides=OVERRIDES,
            pci_io=((0, CONFIG_ADDRESS), (CONFIG_DATA + 4, 0x10000)),
            pci_memory=(MEMORY_WINDOW, HIGH_WINDOW), pci_routes=routes,
            virtio=tuple(self._virtio)))


#: What ``--machine`` can be, and what each is.
MACHINES: Mapping[str, type[LegacyPc]] = MappingProxyType({"pc": Pc, "legacy": LegacyPc})
