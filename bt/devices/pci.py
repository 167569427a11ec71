# SPDX-License-Identifier: GPL-2.0-or-later
"""PCI: a host bridge with configuration mechanism 1, and what every function behind it has.

Source: PCI Local Bus Specification 3.0 (section numbers below are its own).

:class:`PciHost` owns ports 0xcf8 and 0xcfc and bus 0, the only one. :class:`PciFunction` is a type
0 function: its configuration header, base address registers (BARs) that move what they decode on
the machine's :class:`~bt.machine.bus.Bus`, a list of capabilities, one interrupt pin, and MSI-X.
A device is a subclass, or owns one, and sees accesses as (BAR, offset).

There is no firmware, so the host does at power-on what firmware would have: it gives each BAR an
address, turns the decoders on, and writes the interrupt line register. A guest may change all that.

Left out: bridges, configuration mechanism 2 and ECAM, expansion ROMs, power management, parity and
system errors, MSI (of the older kind), hot-plug.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Sequence

from bt.machine.bus import MAX_MMIO_CLAIMS, Bus

CONFIG_ADDRESS = 0xCF8
CONFIG_DATA = 0xCFC

# Configuration header, type 0 (6.1).
VENDOR_ID, DEVICE_ID, COMMAND, STATUS = 0x00, 0x02, 0x04, 0x06
REVISION, CACHE_LINE, LATENCY, HEADER_TYPE = 0x08, 0x0C, 0x0D, 0x0E
BAR0, SUBSYSTEM_VENDOR, SUBSYSTEM_ID = 0x10, 0x2C, 0x2E
CAPABILITIES, INTERRUPT_LINE, INTERRUPT_PIN = 0x34, 0x3C, 0x3D
BARS = 6

COMMAND_IO, COMMAND_MEMORY, COMMAND_MASTER, COMMAND_NO_INTX = 1, 2, 4, 1 << 10
_COMMAND_WRITABLE = COMMAND_IO | COMMAND_MEMORY | COMMAND_MASTER | COMMAND_NO_INTX
STATUS_INTX, STATUS_CAPABILITIES = 1 << 3, 1 << 4
_MULTI_FUNCTION = 0x80

CAP_VENDOR = 0x09
CAP_MSIX = 0x11
MSIX_MAX = 2048
_MSIX_ENABLE, _MSIX_MASK_ALL = 0x80, 0x40      # in the upper byte of Message Control (6.8.2.3)
_MSIX_ENTRY = 16
_ENTRY_MASKED = 1

#: What the host gives BARs: (start, end) by kind. A 64-bit BAR comes below 4 GB if it fits there,
#: where 32-bit kernels can use it, and else in the high range, above all RAM there can be.
IO_WINDOW = (0xC000, 0x10000)
MEMORY_WINDOW = (0xE000_0000, 0xFEC0_0000)
HIGH_WINDOW = (0x80_0000_0000, 0x100_0000_0000)
#: 40 address bits, as CPUID says.
_MEMORY_END = 1 << 40
_KINDS = ("io", "mem32", "mem64")


class _Bar:
    """One base address register, and what it decodes: a device on the bus at its present address.
    """

    wide = True

    def __init__(self, function: PciFunction, index: int, kind: str, size: int) -> None:
        self.function = function
        self.index = index
        self.kind = kind
        self.size = size
        self.address: int | None = None     # where it decodes now

    def _read(self, offset: int, size: int) -> int:
        if offset + size > self.size:
            return ~0
        return self.function.bar_read(self.index, offset, size)

    def _write(self, offset: int, size: int, value: int) -> None:
        if offset + size <= self.size:
            self.function.bar_write(self.index, offset, size, value)

    def read_mmio(self, gpa: int, size: int) -> int:
        return self._read(gpa - (self.address or 0), size)

    def write_mmio(self, gpa: int, size: int, value: int) -> None:
        self._write(gpa - (self.address or 0), size, value)

    def read_port(self, port: int, size: int) -> int:
        return self._read(port - (self.address or 0), size)

    def write_port(self, port: int, size: int, value: int) -> None:
        self._write(port - (self.address or 0), size, value)


class PciFunction:
    """A function of a device. Subclasses override :meth:`read_bar` and :meth:`write_bar`.

    ``class_code``: 24 bits, base class first. ``interrupt_pin``: 1-4 for INTA-INTD, 0 for none.
    Define BARs and capabilities before :meth:`PciHost.add`.
    """

    def __init__(self, vendor_id: int, device_id: int, class_code: int, *, revision: int = 0,
                 subsystem_vendor: int = 0, subsystem_id: int = 0, interrupt_pin: int = 0) -> None:
        self.config = bytearray(256)
        self._writable = bytearray(256)
        struct.pack_into("<HH", self.config, VENDOR_ID, vendor_id, device_id)
        struct.pack_into("<I", self.config, REVISION, class_code << 8 | revision)
        struct.pack_into("<HH", self.config, SUBSYSTEM_VENDOR, subsystem_vendor, subsystem_id)
        struct.pack_into("<H", self._writable, COMMAND, _COMMAND_WRITABLE)
        self.config[INTERRUPT_PIN] = interrupt_pin
        for register in (CACHE_LINE, LATENCY, INTERRUPT_LINE):
            self._writable[register] = 0xFF
        self.bars: dict[int, _Bar] = {}
        self.host: PciHost | None = None
        self.slot = 0
        self._next_capability = 0x40
        self._last_link = CAPABILITIES
        self._irq = False
        self._msix: _Msix | None = None

    # What a device overrides

    def read_bar(self, bar: int, offset: int, size: int) -> int:
        """A read of ``size`` (1, 2, 4, 8) bytes inside BAR ``bar``. No alignment is promised."""
        return ~0

    def write_bar(self, bar: int, offset: int, size: int, value: int) -> None:
        """A write of ``size`` bytes inside BAR ``bar``; ``value`` fits in them."""

    # What a device calls while it is built

    def add_bar(self, index: int, kind: str, size: int, *, prefetchable: bool = False) -> None:
        """BAR ``index`` decodes ``size`` bytes (rounded up to a power of two) of "io", "mem32" or
        "mem64"; the last takes two indexes. Raises ValueError for what PCI does not allow."""
        size = 1 << max(size - 1, 15 if kind != "io" else 3).bit_length()
        taken = {index, index + 1} if kind == "mem64" else {index}
        used = {n for bar in self.bars.values()
                for n in range(bar.index, bar.index + 1 + (bar.kind == "mem64"))}
        if kind not in _KINDS or not taken <= set(range(BARS)) or taken & used or \
                (kind == "io" and size > 256) or size > 1 << 38 or \
                (kind == "mem32" and size > 1 << 28):
            raise ValueError(f"no BAR {index} of {size} bytes of {kind}")
        self.bars[index] = _Bar(self, index, kind, size)
        low = {"io": 1, "mem32": 0, "mem64": 4}[kind] | (8 if prefetchable else 0)
        at = BAR0 + 4 * index
        struct.pack_into("<I", self.config, at, low)
        mask = -size & (0xFFFF_FFFF_FFFF_FFFF if kind == "mem64" else 0xFFFF_FFFF)
        struct.pack_into("<Q" if kind == "mem64" else "<I", self._writable, at,
                         mask & ~(3 if kind == "io" else 15))

    def add_capability(self, identity: int, body: bytes, writable: bytes = b"") -> int:
        """Append a capability (6.7): ``body`` is what follows its two header bytes, ``writable`` a
        mask of the bits in it that the guest may change. Gives its offset in the configuration."""
        at = self._next_capability
        if at + 2 + len(body) > 256:
            raise ValueError("no room for another capability")
        self.config[at] = identity
        self.config[at + 2:at + 2 + len(body)] = body
        self._writable[at + 2:at + 2 + len(writable)] = writable
        self.config[self._last_link] = at
        self._last_link = at + 1
        self._next_capability = at + 2 + len(body) + 3 & ~3
        self.config[STATUS] |= STATUS_CAPABILITIES
        return at

    def add_msix(self, vectors: int, bar: int, table: int = 0, pending: int = 0x800) -> None:
        """MSI-X with ``vectors`` (1-2048) entries: table and pending bits at those offsets (8-byte
        aligned) of memory BAR ``bar``, which may hold other things too."""
        bytes_pending = (vectors + 63) // 64 * 8
        where = self.bars[bar]
        if not 1 <= vectors <= MSIX_MAX or where.kind == "io" or table % 8 or pending % 8 or \
                max(table + vectors * _MSIX_ENTRY, pending + bytes_pending) > where.size or \
                (table < pending + bytes_pending and pending < table + vectors * _MSIX_ENTRY):
            raise ValueError("the MSI-X structures do not fit")
        body = struct.pack("<HII", vectors - 1, table | bar, pending | bar)
        at = self.add_capability(CAP_MSIX, body, bytes((0, _MSIX_ENABLE | _MSIX_MASK_ALL)))
        self._msix = _Msix(self, vectors, bar, table, pending, at)

    # What a device calls while it runs

    @property
    def bus_master(self) -> bool:
        """Whether the guest lets the function access memory by itself."""
        return bool(self.config[COMMAND] & COMMAND_MASTER)

    @property
    def msix_enabled(self) -> bool:
        """Whether the guest has turned MSI-X on; the interrupt pin is off then."""
        return self._msix is not None and self._msix.enabled

    def set_irq(self, level: bool) -> None:
        """Drive the interrupt pin, which is level-triggered: True asserts it."""
        self._irq = level
        if level:
            self.config[STATUS] |= STATUS_INTX
        else:
            self.config[STATUS] &= ~STATUS_INTX
        self._drive_pin()

    def msix_notify(self, vector: int) -> None:
        """Send the message of MSI-X entry ``vector``, or mark it pending while it is masked.

        Nothing happens while MSI-X is off, or if there is no such entry.
        """
        if self._msix is not None:
            self._msix.notify(vector)

    # What the host calls

    def config_read(self, offset: int, size: int) -> int:
        """Configuration bytes ``offset .. offset+size-1``, which lie inside one 32-bit word."""
        return int.from_bytes(self.config[offset:offset + size], "little")

    def config_write(self, offset: int, size: int, value: int) -> None:
        """The guest writes configuration bytes inside one 32-bit word; read-only bits stay."""
        config, writable = self.config, self._writable
        for at in range(offset, offset + size):
            mask = writable[at]
            config[at] = config[at] & ~mask | value & mask
            value >>= 8
        word = offset & ~3
        if BAR0 <= word < BAR0 + 4 * BARS or word == COMMAND:
            self._move_bars()
        if word == COMMAND:
            self._drive_pin()
        elif self._msix is not None and word == self._msix.capability:
            self._msix.update()
            self._drive_pin()

    def bar_read(self, bar: int, offset: int, size: int) -> int:
        if self._msix is not None and self._msix.covers(bar, offset):
            return self._msix.read(offset, size)
        return self.read_bar(bar, offset, size)

    def bar_write(self, bar: int, offset: int, size: int, value: int) -> None:
        if self._msix is not None and self._msix.covers(bar, offset):
            self._msix.write(offset, size, value)
        else:
            self.write_bar(bar, offset, size, value)

    def bar_address(self, bar: _Bar) -> int | None:
        """Where a BAR decodes by what is in the registers, or None. Address 0 is "not set"."""
        command = self.config[COMMAND]
        at = BAR0 + 4 * bar.index
        if bar.kind == "io":
            address = struct.unpack_from("<I", self.config, at)[0] & ~3
            good = command & COMMAND_IO and 0 < address <= 0x10000 - bar.size
        else:
            form = "<Q" if bar.kind == "mem64" else "<I"
            address = struct.unpack_from(form, self.config, at)[0] & ~15
            good = command & COMMAND_MEMORY and 0 < address <= _MEMORY_END - bar.size
        return address if good else None

    def set_bar_address(self, bar: _Bar, address: int) -> None:
        """What firmware does: write an address into the register."""
        at = BAR0 + 4 * bar.index
        form = "<Q" if bar.kind == "mem64" else "<I"
        flags = struct.unpack_from("<I", self.config, at)[0] & 15
        struct.pack_into(form, self.config, at, address | flags)

    def _move_bars(self) -> None:
        if self.host is not None:
            self.host.move_bars(self)

    def _drive_pin(self) -> None:
        if self.host is not None and self.config[INTERRUPT_PIN]:
            masked = self.config[COMMAND + 1] & COMMAND_NO_INTX >> 8
            self.host.drive_pin(self, self._irq and not masked and not self.msix_enabled)


class _Msix:
    """The MSI-X structures of one function (6.8.2): a table of messages, and who is pending."""

    def __init__(self, function: PciFunction, vectors: int, bar: int, table: int, pending: int,
                 capability: int) -> None:
        self.capability = capability
        self.enabled = False
        self._function = function
        self._vectors = vectors
        self._bar = bar
        self._table_at = table
        self._pending_at = pending
        self._mask_all = False
        self._table = bytearray(vectors * _MSIX_ENTRY)
        for entry in range(vectors):
            self._table[entry * _MSIX_ENTRY + 12] = _ENTRY_MASKED
        self._pending = bytearray((vectors + 63) // 64 * 8)

    def covers(self, bar: int, offset: int) -> bool:
        return bar == self._bar and (
            self._table_at <= offset < self._table_at + len(self._table) or
            self._pending_at <= offset < self._pending_at + len(self._pending))

    def read(self, offset: int, size: int) -> int:
        for base, data in ((self._table_at, self._table), (self._pending_at, self._pending)):
            if base <= offset < base + len(data):
                return int.from_bytes(data[offset - base:offset - base + size], "little")
        return 0

    def write(self, offset: int, size: int, value: int) -> None:
        """The pending bits are read-only; so are bits 31-1 of an entry's vector control and bits
        1-0 of its address, which is a 32-bit word's."""
        at = offset - self._table_at
        if not 0 <= at < len(self._table):
            return
        end = min(at + size, len(self._table))
        for i in range(at, end):
            field = i % _MSIX_ENTRY
            if field < 12:
                self._table[i] = value & (0xFC if field == 0 else 0xFF)
            elif field == 12:
                self._table[i] = value & _ENTRY_MASKED
            value >>= 8
        for entry in range(at // _MSIX_ENTRY, (end - 1) // _MSIX_ENTRY + 1):
            self._deliver(entry)

    def update(self) -> None:
        """Message Control was written: an enabled and unmasked function sends what is pending."""
        control = self._function.config[self.capability + 3]
        self.enabled = bool(control & _MSIX_ENABLE)
        self._mask_all = bool(control & _MSIX_MASK_ALL)
        if self.enabled and not self._mask_all:
            for byte, bits in enumerate(self._pending):
                for bit in range(8):
                    if bits >> bit & 1:
                        self._deliver(byte * 8 + bit)

    def notify(self, vector: int) -> None:
        if self.enabled and 0 <= vector < self._vectors:
            self._pending[vector >> 3] |= 1 << (vector & 7)
            self._deliver(vector)

    def _deliver(self, vector: int) -> None:
        """Send the message of a pending entry that nothing holds back."""
        bit = 1 << (vector & 7)
        at = vector * _MSIX_ENTRY
        if not self._pending[vector >> 3] & bit or not self.enabled or self._mask_all or \
                self._table[at + 12] & _ENTRY_MASKED:
            return
        self._pending[vector >> 3] &= ~bit
        address, data = struct.unpack_from("<QI", self._table, at)
        host = self._function.host
        # A message is a memory write of the function's own.
        if host is not None and self._function.bus_master:
            host.message(address, data)


class PciHost:
    """Bus 0 with its host bridge at 00:00.0, on ports 0xcf8 and 0xcfc-0xcff.

    ``lines`` are the four interrupt lines that the pins lead to: pin *p* (1-4) of slot *s* to line
    (s + p - 1) mod 4. ``irqs`` are their numbers as the interrupt line registers give them.
    ``on_message(address, data)`` gets MSI-X messages.
    """

    wide = True

    def __init__(self, bus: Bus, lines: Sequence[Callable[[bool], None]],
                 irqs: Sequence[int]) -> None:
        self._bus = bus
        self._lines = lines
        self._irqs = irqs
        self._asserted: list[set[PciFunction]] = [set() for _ in range(4)]
        self._address = 0
        self._next = {"io": IO_WINDOW[0], "low": MEMORY_WINDOW[0], "high": HIGH_WINDOW[0]}
        self.functions: dict[int, PciFunction] = {}     # by slot * 8 + function number
        self.on_message: Callable[[int, int], None] | None = None
        bus.claim(self, CONFIG_ADDRESS, 1)
        bus.claim(self, CONFIG_DATA, 4)
        # Intel 440FX by name: the host bridge that every kernel knows to need nothing of it.
        self.add(PciFunction(0x8086, 0x1237, 0x060000, revision=2), slot=0)

    def add(self, function: PciFunction, slot: int | None = None, number: int = 0) -> int:
        """Put ``function`` into ``slot`` (0-31; None: the next free one) as its function ``number``
        (0-7), with addresses for its BARs. Gives the slot. Raises ValueError if there is no room.
        """
        if slot is None:
            slot = next((s for s in range(1, 32) if s * 8 not in self.functions), 32)
        key = slot * 8 + number
        claims = sum(len(f.bars) for f in self.functions.values()) + len(function.bars)
        if not 0 <= slot < 32 or not 0 <= number < 8 or key in self.functions or \
                claims > MAX_MMIO_CLAIMS // 2:
            raise ValueError(f"no place for a PCI function in slot {slot}")
        self.functions[key] = function
        function.host = self
        function.slot = slot
        for bar in function.bars.values():
            function.set_bar_address(bar, self._assign(bar))
        function.config[COMMAND] = COMMAND_IO | COMMAND_MEMORY
        pin = function.config[INTERRUPT_PIN]
        function.config[INTERRUPT_LINE] = self._irqs[slot + pin - 1 & 3] if pin else 0xFF
        together = [f for k, f in self.functions.items() if k >> 3 == slot]
        for other in together if len(together) > 1 else ():
            other.config[HEADER_TYPE] |= _MULTI_FUNCTION
        self.move_bars(function)
        return slot

    def _assign(self, bar: _Bar) -> int:
        """The next aligned address of a window (BARs decode multiples of their size)."""
        choices = [("io", IO_WINDOW[1])] if bar.kind == "io" else [("low", MEMORY_WINDOW[1])]
        if bar.kind == "mem64":
            choices.append(("high", HIGH_WINDOW[1]))
        for name, end in choices:
            start = self._next[name] + bar.size - 1 & -bar.size
            if start + bar.size <= end:
                self._next[name] = start + bar.size
                return start
        raise ValueError(f"no address left for a BAR of {bar.size} bytes of {bar.kind}")

    def pins(self) -> list[tuple[int, int]]:
        """(slot, pin 0-3) of every function with an interrupt pin."""
        return sorted({(key >> 3, function.config[INTERRUPT_PIN] - 1)
                       for key, function in self.functions.items()
                       if function.config[INTERRUPT_PIN]})

    # From functions

    def move_bars(self, function: PciFunction) -> None:
        """Make the bus follow the registers of ``function``."""
        moved_ports = False
        for bar in function.bars.values():
            address = function.bar_address(bar)
            if address == bar.address:
                continue
            if bar.kind == "io":
                moved_ports = True
                continue
            if bar.address is not None:
                self._bus.unclaim_mmio(bar)
            bar.address = address
            if address is not None:
                self._bus.claim_mmio(bar, address, bar.size)
        if moved_ports:
            self._move_ports()

    def _move_ports(self) -> None:
        """Claim all I/O BARs anew. Ports of the board's own devices are theirs, and of two BARs at
        one port the first has it, so a guest that moves one to and fro finds everything again."""
        bars = [(function, bar) for function in self.functions.values()
                for bar in function.bars.values() if bar.kind == "io"]
        for _, bar in bars:
            if bar.address is not None:
                self._bus.unclaim(bar, bar.address, bar.size)
        for function, bar in bars:
            bar.address = function.bar_address(bar)
            if bar.address is None:
                continue
            for port in range(bar.address, bar.address + bar.size):
                if not self._bus.read_kind[port]:
                    self._bus.claim(bar, port, 1)

    def drive_pin(self, function: PciFunction, level: bool) -> None:
        """The interrupt pin of ``function`` is ``level``; pins that share a line are ORed."""
        line = function.slot + function.config[INTERRUPT_PIN] - 1 & 3
        asserted = self._asserted[line]
        before = bool(asserted)
        if level:
            asserted.add(function)
        else:
            asserted.discard(function)
        if bool(asserted) != before:
            self._lines[line](level)

    def message(self, address: int, data: int) -> None:
        """An MSI-X message: the interrupt controller's, if there is one that takes them."""
        if self.on_message is not None:
            self.on_message(address, data)

    # Configuration mechanism 1 (3.2.2.3.2)

    def _target(self, port: int, size: int) -> tuple[PciFunction | None, int]:
        """The function that the address register selects, and the offset in its configuration."""
        offset = (self._address & 0xFC) + (port & 3)
        if not self._address >> 31 or self._address >> 16 & 0xFF or (port & 3) + size > 4:
            return None, 0
        return self.functions.get(self._address >> 8 & 0xFF), offset

    def read_port(self, port: int, size: int) -> int:
        """The address register as a whole, or configuration data; ones where nothing is."""
        if port == CONFIG_ADDRESS:
            return self._address if size == 4 else ~0
        function, offset = self._target(port, size)
        return ~0 if function is None else function.config_read(offset, size)

    def write_port(self, port: int, size: int, value: int) -> None:
        """The address register takes 32-bit writes only (what is narrower is for other devices)."""
        if port == CONFIG_ADDRESS:
            if size == 4:
                self._address = value & 0x80FF_FFFC
            return
        function, offset = self._target(port, size)
        if function is not None:
            function.config_write(offset, size, value)
