# SPDX-License-Identifier: GPL-2.0-or-later
"""The ACPI tables of the machine, which firmware would have made: small, and true.

Source: ACPI 6.5, chapter 5. They lie at 0xe0000, in the range where a kernel that was told nothing
looks for the RSDP (5.2.5.1), which the memory map calls reserved:

======  =====================================================================
RSDP    points to the XSDT (and, for old kernels, to an RSDT)
FADT    ports of the fixed hardware, reset register, what a PC has and has not
MADT    the local APIC, the I/O APIC, and how ISA interrupts lead to it
DSDT    ``\\_S5`` (power off), ``\\_PIC``, and the PCI host bridge ``PCI0`` with
        its windows and the routing of its interrupt pins; virtio
        devices that are not on PCI
FACS    because the FADT must point to one
======  =====================================================================

Every term costs a guest boot time: nothing is described that a kernel finds by itself, and only
slots with a device that has an interrupt pin are in the routing table.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Mapping
from typing import NamedTuple

from bt.boot import aml
from bt.machine.ram import Ram

ROOT = 0xE0000
_END = 0xF0000
_OEM = b"RING1 "
_OEM_TABLE = b"RING1VMM"
_CREATOR = b"RNG1"


class Hardware(NamedTuple):
    """What the tables describe. Ports and addresses are the devices' own constants."""

    pm1_event: int
    pm1_control: int
    pm_timer: int
    s5: int
    sci: int
    reset_port: int
    reset_value: int
    lapic: int
    ioapic: int
    ioapic_id: int
    #: ISA interrupt -> pin of the I/O APIC, where they differ.
    overrides: Mapping[int, int]
    #: (start, end) of what PCI decodes.
    pci_io: tuple[tuple[int, int], ...]
    pci_memory: tuple[tuple[int, int], ...]
    #: (slot, pin 0-3) -> (interrupt at the I/O APIC, interrupt at the 8259s).
    pci_routes: Mapping[tuple[int, int], tuple[int, int]]
    #: (address, length, interrupt) of each virtio device that is in memory and on no bus.
    virtio: tuple[tuple[int, int, int], ...] = ()


def checksum(data: bytes) -> int:
    """The byte that makes the sum of all bytes 0."""
    return -sum(data) & 0xFF


def _table(signature: bytes, revision: int, body: bytes) -> bytes:
    """A table with its header (5.2.6)."""
    data = bytearray(struct.pack("<4sIBB6s8sI4sI", signature, 36 + len(body), revision, 0, _OEM,
                                 _OEM_TABLE, 1, _CREATOR, 1) + body)
    data[9] = checksum(data)
    return bytes(data)


def _fadt(hardware: Hardware, facs: int, dsdt: int) -> bytes:
    """FADT (5.2.9), as of ACPI 6.5, with 276 bytes."""
    body = bytearray(276 - 36)

    def put(offset: int, form: str, *values: int) -> None:
        struct.pack_into("<" + form, body, offset - 36, *values)

    def port(offset: int, address: int, bits: int, size: int) -> None:
        """A generic address structure in I/O space (5.2.3.2)."""
        put(offset, "BBBBQ", 1, bits, 0, size, address)

    put(36, "II", facs, dsdt)
    put(45, "B", 4)                                     # preferred profile: enterprise server
    put(46, "H", hardware.sci)
    put(56, "I", hardware.pm1_event)
    put(64, "I", hardware.pm1_control)
    put(76, "I", hardware.pm_timer)
    put(88, "BBBB", 4, 2, 0, 4)                         # lengths of the four blocks
    put(96, "HH", 0xFFFF, 0xFFFF)                       # no C2, no C3
    put(108, "B", 0x32)                                 # the clock's century byte
    # Legacy devices on ISA; no 8042 (bit 1), no VGA (bit 2).
    put(109, "H", 1 | 1 << 2)
    # WBINVD works, C1, no buttons in fixed hardware, no RTC wake, reset register.
    put(112, "I", 1 | 1 << 2 | 1 << 4 | 1 << 5 | 1 << 6 | 1 << 10)
    port(116, hardware.reset_port, 8, 1)
    put(128, "B", hardware.reset_value)
    put(131, "B", 5)                                    # minor version of 6.5
    put(132, "Q", 0)                                    # the FACS is given above, in 32 bits
    put(140, "Q", dsdt)
    port(148, hardware.pm1_event, 32, 2)
    port(172, hardware.pm1_control, 16, 2)
    port(208, hardware.pm_timer, 32, 3)
    return _table(b"FACP", 6, bytes(body))


def _madt(hardware: Hardware) -> bytes:
    """MADT (5.2.12): 8259s are there too (flag 1). Sources: bus 0 is ISA; flags are MPS INTI."""
    level_high = 0xD
    body = struct.pack("<II", hardware.lapic, 1)
    body += struct.pack("<BBBBI", 0, 8, 0, 0, 1)        # CPU 0, APIC ID 0, enabled
    body += struct.pack("<BBBBII", 1, 12, hardware.ioapic_id, 0, hardware.ioapic, 0)
    for source, pin in hardware.overrides.items():
        body += struct.pack("<BBBBIH", 2, 10, 0, source, pin, 0)
    body += struct.pack("<BBBBIH", 2, 10, 0, hardware.sci, hardware.sci, level_high)
    body += struct.pack("<BBBHB", 4, 6, 0xFF, 0, 1)     # NMI is LINT1 of all CPUs
    return _table(b"APIC", 5, body)


def _dsdt(hardware: Hardware) -> bytes:
    zero = aml.integer(0)
    sleep_type = aml.integer(hardware.s5)
    terms = [
        aml.define("\\_S5_", aml.package([sleep_type, sleep_type, zero, zero])),
        # The kernel says which interrupt controller it uses: 0 the 8259s, 1 the APICs.
        aml.define("\\PICM", zero),
        aml.method("\\_PIC", 1, aml.store(aml.argument(0), aml.name("\\PICM"))),
    ]
    crs = [aml.bus_range(0, 0), aml.io_ports(0xCF8, 8)]
    crs += [aml.io_range(start, end - 1) for start, end in hardware.pci_io]
    crs += [aml.memory_range(start, end - 1) for start, end in hardware.pci_memory]
    bridge = [
        aml.define("_HID", aml.eisa_id("PNP0A03")),
        aml.define("_UID", zero),
        aml.define("_CRS", aml.resources(*crs)),
    ]
    if hardware.pci_routes:
        bridge += [
            aml.method("_PRT", 0,
                       aml.if_(aml.name("\\PICM"), aml.returns(aml.name("PRTA"))),
                       aml.returns(aml.name("PRTP"))),
            aml.define("PRTA", _routes(hardware, 0)),
            aml.define("PRTP", _routes(hardware, 1)),
        ]
    devices = [aml.device("PCI0", *bridge)]
    # LNRO0005 is what Linux and QEMU agreed on; the specification of virtio has no ACPI.
    devices += [aml.device(f"VM{number:02X}",
                           aml.define("_HID", aml.text("LNRO0005")),
                           aml.define("_UID", aml.integer(number)),
                           aml.define("_CRS", aml.resources(aml.memory_fixed(address, length),
                                                            aml.interrupt(interrupt))))
                for number, (address, length, interrupt) in enumerate(hardware.virtio)]
    terms.append(aml.scope("\\_SB_", *devices))
    return _table(b"DSDT", 2, b"".join(terms))


def _routes(hardware: Hardware, which: int) -> bytes:
    """A _PRT (6.2.13) that names interrupts directly: address, pin, no link device, interrupt."""
    return aml.package(
        aml.package([aml.integer(slot << 16 | 0xFFFF), aml.integer(pin), aml.integer(0),
                     aml.integer(interrupts[which])])
        for (slot, pin), interrupts in sorted(hardware.pci_routes.items()))


def tables(hardware: Hardware, root: int = ROOT) -> dict[int, bytes]:
    """All tables for a machine, by guest-physical address; the RSDP is at ``root``."""
    placed: dict[int, bytes] = {}
    at = root + 64

    def place(data: bytes) -> int:
        nonlocal at
        here = at
        placed[here] = data
        at = here + len(data) + 63 & -64        # the FACS must be aligned so, the others may be
        return here

    # FACS (5.2.10): no waking vector, lock free, version 2.
    facs = place(struct.pack("<4sIIIIIQB31x", b"FACS", 64, 0, 0, 0, 0, 0, 2))
    dsdt = place(_dsdt(hardware))
    entries = [place(_fadt(hardware, facs, dsdt)), place(_madt(hardware))]
    xsdt = place(_table(b"XSDT", 1, _words("Q", entries)))
    rsdt = place(_table(b"RSDT", 1, _words("I", entries)))
    if at > _END:
        raise ValueError("the ACPI tables do not fit")
    # RSDP (5.2.5.3): the first checksum is for the 20 bytes of ACPI 1.0.
    rsdp = bytearray(struct.pack("<8sB6sBIIQB3x", b"RSD PTR ", 0, _OEM, 2, rsdt, 36, xsdt, 0))
    rsdp[8] = checksum(rsdp[:20])
    rsdp[32] = checksum(rsdp)
    placed[root] = bytes(rsdp)
    return placed


def _words(form: str, values: Iterable[int]) -> bytes:
    values = list(values)
    return struct.pack(f"<{len(values)}{form}", *values)


def install(ram: Ram, hardware: Hardware) -> int:
    """Put the tables into RAM; gives the address of the RSDP."""
    for address, data in tables(hardware).items():
        ram.write(address, data)
    return ROOT
