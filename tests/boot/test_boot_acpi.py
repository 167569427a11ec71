# SPDX-License-Identifier: GPL-2.0-or-later
"""The ACPI tables: as a kernel finds them, and as ACPICA's disassembler reads them."""

from __future__ import annotations

import re
import shutil
import struct
import subprocess

import pytest

from bt.boot import acpi, aml
from bt.devices.pc import Pc
from bt.devices.pci import PciFunction
from bt.machine.bus import Bus
from bt.machine.ram import Ram
from bt.machine.timers import TimerQueue


class Clock:
    def now_ns(self):
        return 0


def machine(*pins, virtio=0):
    """A PC with a PCI function for each interrupt pin, from slot 1 on, and its RAM.

    ``virtio``: that many virtio devices that are not on PCI.
    """
    clock = Clock()
    ram = Ram(1 << 20)
    pc = Pc(clock, TimerQueue(clock), Bus(), ram.size)
    for pin in pins:
        pc.pci.add(PciFunction(1, 2, 0x020000, interrupt_pin=pin))
    for _ in range(virtio):
        pc.virtio_place(0x200)
    assert pc.install_firmware(ram) == acpi.ROOT
    return ram


def find(ram):
    """{signature: table}, the way a kernel that was told nothing goes: scan, RSDP, XSDT."""
    root = next(at for at in range(0xE0000, 0x100000, 16) if ram.read(at, 8) == b"RSD PTR ")
    rsdp = ram.read(root, 36)
    assert sum(rsdp[:20]) & 0xFF == 0 == sum(rsdp) & 0xFF
    revision, rsdt, length, xsdt = struct.unpack_from("<BIIQ", rsdp, 15)
    assert revision == 2 and length == 36
    found = {}
    for at, form in ((rsdt, "I"), (xsdt, "Q")):
        table = read_table(ram, at)
        found[table[:4].decode()] = table
        entries = struct.unpack(f"<{(len(table) - 36) // struct.calcsize(form)}{form}", table[36:])
        for entry in entries:
            table = read_table(ram, entry)
            found[table[:4].decode()] = table
    fadt = found["FACP"]
    facs, dsdt = struct.unpack_from("<II", fadt, 36)
    assert struct.unpack_from("<Q", fadt, 140) == (dsdt,)
    found["DSDT"] = read_table(ram, dsdt)
    assert facs % 64 == 0
    found["FACS"] = ram.read(facs, 64)
    return found


def read_table(ram, at):
    length = struct.unpack("<I", ram.read(at + 4, 4))[0]
    table = ram.read(at, length)
    assert sum(table) & 0xFF == 0, table[:4]
    return table


def test_a_kernel_finds_everything():
    found = find(machine(1))
    assert set(found) == {"RSDT", "XSDT", "FACP", "APIC", "DSDT", "FACS"}
    assert found["FACS"][:4] == b"FACS"


def test_nothing_is_outside_of_the_reserved_range():
    full = hardware([(slot, pin) for slot in range(32) for pin in range(4)])
    for address, data in acpi.tables(full).items():
        assert acpi.ROOT <= address and address + len(data) <= 0xF0000


def hardware(pins):
    return acpi.Hardware(
        pm1_event=0x600, pm1_control=0x604, pm_timer=0x608, s5=5, sci=9, reset_port=0xCF9,
        reset_value=6, lapic=0xFEE00000, ioapic=0xFEC00000, ioapic_id=1, overrides={0: 2},
        pci_io=((0, 0xCF8), (0xD00, 0x10000)), pci_memory=((0xE0000000, 0xFEC00000),),
        pci_routes={pin: (16, 10) for pin in pins})


@pytest.mark.parametrize("size", [0, 1, 60, 61, 62, 63, 64, 4091, 4092, 4093, 4094, 70_000])
def test_package_lengths(size):
    """20.2.4: the length counts its own bytes; two bits say how many follow the first."""
    coded = aml.scope("ABCD", bytes(size))
    lead = coded[1]
    follow = lead >> 6
    length = lead & 0x3F if not follow else lead & 0xF | int.from_bytes(
        coded[2:2 + follow], "little") << 4
    assert length == len(coded) - 1


def test_integers_and_ids():
    assert aml.integer(0) == b"\0" and aml.integer(1) == b"\1"
    assert aml.integer(0xFF) == b"\x0a\xff" and aml.integer(0x100) == b"\x0b\0\1"
    assert aml.integer(1 << 32) == b"\x0e\0\0\0\0\1\0\0\0"
    with pytest.raises(ValueError, match="64 bits"):
        aml.integer(1 << 64)
    assert aml.eisa_id("PNP0A03") == b"\x0c\x41\xd0\x0a\x03"    # ACPI 6.5, 19.6.36


# ACPICA as the oracle

@pytest.fixture
def iasl(tmp_path):
    if shutil.which("iasl") is None:
        pytest.skip("iasl is not installed (Debian: acpica-tools)")

    def disassemble(name, table):
        path = tmp_path / f"{name}.dat"
        path.write_bytes(table)
        done = subprocess.run(["iasl", "-d", str(path)], capture_output=True, text=True,
                              cwd=tmp_path, timeout=60)
        said = done.stdout + done.stderr
        assert done.returncode == 0, said
        assert not re.search(r"error|warning", said, re.IGNORECASE), said
        return path.with_suffix(".dsl")

    return disassemble


@pytest.mark.parametrize("pins", [(), (1,), (1, 2, 3, 4, 1)])
def test_the_dsdt_is_what_it_is_meant_to_be(iasl, tmp_path, pins):
    source = iasl("dsdt", find(machine(*pins))["DSDT"])
    flat = re.sub(r"\s+", " ", re.sub(r"//.*|/\*.*?\*/", "", source.read_text()))
    assert "Name (\\_S5, Package (0x04) { 0x05, 0x05, Zero, Zero })" in flat
    assert 'EisaId ("PNP0A03")' in flat
    for item in ("WordBusNumber (ResourceProducer, MinFixed, MaxFixed, PosDecode,",
                 "WordIO (ResourceProducer, MinFixed, MaxFixed, PosDecode, EntireRange,",
                 "DWordMemory (ResourceProducer, PosDecode, MinFixed, MaxFixed, NonCacheable, "
                 "ReadWrite,", "QWordMemory (ResourceProducer,"):
        assert item in flat, item
    assert flat.count("Package (0x04) {") == 1 + 2 * len(pins)
    if pins:
        # Slot 1, INTA: line (1 + 1 - 1) mod 4 is pin 17, and IRQ 11 at the 8259s.
        assert re.search(r"Name \(PRTA, Package \(0x0[15]\) \{ Package \(0x04\) \{ 0x0001FFFF, "
                         r"Zero, Zero, 0x11 \}", flat), flat
        assert re.search(r"Name \(PRTP, .* \{ 0x0001FFFF, Zero, Zero, 0x0B \}", flat)
    # And it compiles again, without a complaint.
    done = subprocess.run(["iasl", "-p", str(tmp_path / "again"), str(source)],
                          capture_output=True, text=True, cwd=tmp_path, timeout=60)
    assert "0 Errors, 0 Warnings" in done.stdout, done.stdout + done.stderr


def test_virtio_devices_in_memory(iasl, tmp_path):
    source = iasl("dsdt", find(machine(virtio=32))["DSDT"])
    flat = re.sub(r"\s+", " ", re.sub(r"//.*|/\*.*?\*/", "", source.read_text()))
    found = re.findall(
        r'Device \(VM(..)\) \{ Name \(_HID, "LNRO0005"\) Name \(_UID, (\w+)\) '
        r"Name \(_CRS, ResourceTemplate \(\) \{ Memory32Fixed \(ReadWrite, (\w+), (\w+), \) "
        r"Interrupt \(ResourceConsumer, Level, ActiveHigh, Shared, ,, \) "
        r"\{ (\w+), \} \}\) \}", flat)
    assert len(found) == 32, flat
    for number, (name, _, address, length, interrupt) in enumerate(found):
        assert name == f"{number:02X}"
        assert (int(address, 16), int(length, 16)) == (0xFED00000 + 0x1000 * number, 0x200)
        assert int(interrupt, 16) == (5, 6, 7, 12)[number % 4]
    done = subprocess.run(["iasl", "-p", str(tmp_path / "again"), str(source)],
                          capture_output=True, text=True, cwd=tmp_path, timeout=60)
    assert "0 Errors, 0 Warnings" in done.stdout, done.stdout + done.stderr


def fields(source):
    """{field name: value} of a data table that iasl has written out."""
    return {match[1].strip(): match[2].strip() for match in re.finditer(
        r"^(?:\[.*?\])? *(.*?) : (.*)$", source.read_text(), re.MULTILINE)}


def test_the_fadt_and_madt_are_read_as_meant(iasl):
    found = find(machine(1))
    fadt = fields(iasl("facp", found["FACP"]))
    for name, value in (
            ("SCI Interrupt", "0009"), ("SMI Command Port", "00000000"),
            ("PM1A Event Block Address", "00000600"), ("PM1A Control Block Address", "00000604"),
            ("PM Timer Block Address", "00000608"), ("PM1 Event Block Length", "04"),
            ("PM1 Control Block Length", "02"), ("PM Timer Block Length", "04"),
            ("RTC Century Index", "32"), ("8042 Present on ports 60/64 (V2)", "0"),
            ("VGA Not Present (V4)", "1"), ("Legacy Devices Supported (V2)", "1"),
            ("Reset Register Supported (V2)", "1"), ("Value to cause reset", "06"),
            ("Hardware Reduced (V5)", "0"), ("Control Method Power Button (V1)", "1"),
            ("FADT Minor Revision", "05")):
        assert fadt[name] == value, name
    madt = fields(iasl("apic", found["APIC"]))
    for name, value in (("Local Apic Address", "FEE00000"), ("PC-AT Compatibility", "1"),
                        ("Processor Enabled", "1"), ("I/O Apic ID", "01"),
                        ("Interrupt Input LINT", "01")):
        assert madt[name] == value, name
    text = iasl("again", found["APIC"]).read_text()
    assert re.findall(r"\] +Source : (..)$", text, re.MULTILINE) == ["00", "09"]
    assert re.findall(r"Interrupt : (\d{8})$", text, re.MULTILINE)[-2:] == ["00000002", "00000009"]
