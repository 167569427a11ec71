# SPDX-License-Identifier: GPL-2.0-or-later
"""The names of Debian's stripped kernel against what the kernel itself says: /proc/kallsyms."""

from __future__ import annotations

import re

import pytest

from bt.machine.machine import Machine
from bt.symbols import of_file
from bt.symbols.guest import from_memory
from guests.linux import initramfs


def lines(table) -> list[str]:
    return [f"{s.address:016x} {s.kind} {s.name}" for s in table.items()]


@pytest.fixture(scope="module")
def listed(debian):
    """A machine whose Linux has listed its symbols: (machine, lines without those of modules)."""
    kernel, busybox = debian
    out = bytearray()
    extra = initramfs.command_cpio(["cat", "/proc/kallsyms"], stdin=False)
    machine = Machine(channels={2: out.extend, 3: out.extend})
    machine.load(kernel, cmdline="console=ttyS0 quiet panic=-1",
                 initrd=initramfs.initramfs(busybox, [extra]))
    outcome = machine.run(timeout=240)
    assert (outcome.kind, outcome.status) == ("powered-off", 0)
    said = [line for line in out.decode().splitlines() if "[" not in line]
    assert len(said) > 50_000
    return machine, said


def test_from_the_file(debian, listed) -> None:
    assert lines(of_file(debian[0])) == listed[1]


def test_from_the_memory_of_the_running_kernel(listed) -> None:
    machine, said = listed
    found = from_memory(machine.ram, machine.vcpu.registers())
    assert found is not None and lines(found) == said


def test_the_machine_names_addresses(listed) -> None:
    table = listed[0].symbols()
    at = table.address("start_kernel")
    assert table.describe(at + 0x12) == "start_kernel+0x12"
    assert table.lookup(0x40_0000) is None          # a program's code has no name of the kernel's


def test_the_report_of_a_panic_has_names(bt) -> None:
    result = bt("run", "linux", "--", "sh", "-c", "echo c > /proc/sysrq-trigger")
    assert result.status == 3
    report = result.err[result.err.index("bt: the guest died"):]
    # Where a kernel that gave up stops: at the reset register that ACPI names.
    assert re.search(r"  in (acpi_\w+|native_machine_emergency_restart)\+0x", report)
    assert "<acpi_reboot>" in report
