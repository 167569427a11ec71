# SPDX-License-Identifier: GPL-2.0-or-later
"""Debian's kernel on both boards, with no special command line: what it finds, how it ends."""

from __future__ import annotations

import re

import pytest

from bt.machine.machine import Machine
from guests.linux import initramfs


def test_the_pc(bt):
    result = bt("run", "linux", "--", "sh", "-c",
                "cat /proc/interrupts; ls /sys/bus/pci/devices; dmesg; cat /proc/iomem")
    assert result.status == 0
    for wanted in (r"4: +[1-9]\d* +IO-APIC +4-edge +ttyS0", r"9: .*IO-APIC +9-fasteoi +acpi",
                   r"LOC: +[1-9]\d+ ", r"^0000:00:00\.0$", r"ACPI: Interpreter enabled",
                   r"ACPI: PM: \(supports S0 S5\)", r"fee00000-fee00fff : Local APIC",
                   r"e0000000-febfffff : PCI Bus 0000:00"):
        assert re.search(wanted, result.out, re.MULTILINE), wanted
    # The timer's frequency is told, and what the firmware says is not complained about.
    assert not re.search(r"calibrat(?!ing delay loop \(skipped)|ACPI.*(error|warning)|"
                         r"\[Firmware Bug", result.out, re.IGNORECASE)
    assert "XT-PIC" not in result.out


def test_the_legacy_board(bt):
    result = bt("run", "linux", "--machine", "legacy", "--", "sh", "-c",
                "cat /proc/interrupts; ls /sys/bus; dmesg")
    assert result.status == 0
    assert re.search(r"0: +[1-9]\d+ +XT-PIC +timer", result.out)
    assert "IO-APIC" not in result.out and "ACPI: RSDP" not in result.out


@pytest.mark.parametrize(("machine", "command", "kind", "said"), [
    ("pc", "poweroff -f", "powered-off", b"Preparing to enter system sleep state S5"),
    ("pc", "reboot -f", "reset", b"reboot: machine restart"),
    ("legacy", "poweroff -f", "halted", b"System halted"),
    ("legacy", "reboot -f", "reset", b"reboot: machine restart"),
])
def test_how_it_ends(debian, machine, command, kind, said):
    kernel, busybox = debian
    out = bytearray()
    vm = Machine(machine=machine, console=out.extend)
    vm.load(kernel, cmdline="console=ttyS0 panic=-1", initrd=initramfs.initramfs(
        busybox, [initramfs.command_cpio(["sh", "-c", command])]))
    outcome = vm.run(timeout=120)
    assert (outcome.kind, outcome.status) == (kind, 0)
    assert said in out


def test_the_reset_is_acpis(debian):
    """Not the keyboard controller's, which would do as well."""
    kernel, busybox = debian
    vm = Machine()
    sources = []
    vm.pc.power.on_reset = lambda source: (sources.append(source), vm.end("reset"))
    vm.load(kernel, cmdline="panic=-1", initrd=initramfs.initramfs(
        busybox, [initramfs.command_cpio(["reboot", "-f"])]))
    assert vm.run(timeout=120).kind == "reset"
    assert sources == ["cf9"]


def test_more_than_3_gb(bt):
    """RAM goes on above the hole."""
    result = bt("run", "linux", "--mem", "4G", "--", "sh", "-c",
                "grep RAM /proc/iomem; head -1 /proc/meminfo; "
                "dd if=/dev/zero of=/tmp/x bs=1M count=64 2>/dev/null; md5sum </tmp/x")
    assert "00100000-bfffffff : System RAM\n100000000-13fffffff : System RAM" in result.out
    assert int(re.search(r"MemTotal: +(\d+)", result.out)[1]) > 3_900_000
    assert "7f614da9329cd3aebf59b91aadc30bf0" in result.out


@pytest.mark.parametrize("machine", ["pc", "legacy"])
def test_pvh(bt, machine):
    """Another way in, the same kernel and the same command's status."""
    result = bt("run", "linux", "--boot", "pvh", "--machine", machine, "-v", "--", "sh", "-c",
                "dmesg | grep -c 'ACPI: RSDP'; exit 7")
    assert result.status == 7, result.err
    assert ", PVH, engine bt\n" in result.err
    assert result.out.split() == ["1" if machine == "pc" else "0"]
