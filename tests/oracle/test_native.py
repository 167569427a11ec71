# SPDX-License-Identifier: GPL-2.0-or-later
"""What the guests do on QEMU: they are sound, and cover the whole table in every mode."""

from __future__ import annotations

import pytest
import runners
from deviations import DEVIATIONS

import guests
from guests.sensitive import manifest
from translator.sensitive import TABLE

pytestmark = pytest.mark.qemu

HELLO = "Hello from ring 0 (or so it thinks), CS=0x8 CPL=0, 64-bit long mode\n"
HELLO32 = """\
Hello from 32-bit protected mode, paging off, CS=0x8 CR0.PG=0
Hello again, paging on, running at 0xc0000000..., CR0.PG=1
Both mappings show the same memory
"""
TASKS = """\
tasks: four user tasks, 100 Hz timer
A: a step, by syscall
B: a step, by int 0x80
C: asleep
D: tries cli
A: a step, by syscall
B: a step, by int 0x80
C: eight new pages keep what was written
task D killed: exception 13, error code 0x0
A: a step, by syscall
B: a step, by int 0x80
C: reads kernel memory
A: a step, by syscall
B: a step, by int 0x80
task C killed: exception 14, error code 0x5, address 0x100000
task A exits
task B exits
pages faulted in: 10
tasks killed: 2
user code was preempted: yes
the idle loop halted: yes
syscall was used: yes
int 0x80 was used: yes
"""
APIC = """\
base register: 0xfee00900, local APIC version and last LVT entry: 0x50014, I/O APIC pins: 24
requested while off: 0x20000, taken: 0x51, priority then: 0x50
its own class and one below, while it is served: none, one above: 0x61, when these are done: \
0x5f 0x4f
three at once, asked for from low to high: 0x63 0x52 0x41
CR8 5: TPR 0x50, 51 and 61 asked for, taken: 0x61, TPR 0x40: CR8 0x4, taken: 0x51
timer, masked: counts down: yes, stopped: 0, once: 0x72, then at: 0, periodic: 0x73 0x73 0x73
8254 and 8259 by way of LINT0: 0x30, LINT0 masked: none
8254 on pin 2 of the I/O APIC, edge: 0x82
COM1 on pin 4, level: 0x84, in service: 1, ended and released: none, in service: 0, ended while \
still asserted: 0x84 0x84
PCI 00:00.0: 0x12378086, class 0x600, 00:1f.7: 0xffffffff
ACPI: RSDP good, RSDT good, FADT good, DSDT good, MADT good
MADT: local APIC at 0xfee00000, I/O APIC at 0xfec00000, IRQ 0 on pin 2
"""


@pytest.mark.parametrize(("name", "expected"), [
    ("hello", HELLO), ("hello32", HELLO32), ("tasks", TASKS), ("apic", APIC)])
def test_plain_guests(native, name, expected):
    assert native(name) == (expected, 0)


@pytest.mark.parametrize("name", manifest.GUESTS)
def test_every_case_prints_its_line(native, name):
    output, status = native(name)
    assert status == 0
    assert output.endswith("end of cases\n")
    expected = [line for case in manifest.cases(name) for line in case.lines()]
    assert list(runners.results(output)) == expected


@pytest.mark.parametrize("row", TABLE, ids=lambda row: row.name)
def test_row_is_executed_in_every_mode(row):
    widths = _coverage().get(row.name, {})
    for bits in row.modes:
        modes = 0
        for case in widths.get(bits, []):
            modes |= case.modes
        assert modes == manifest.KERNEL | manifest.USER, f"{row.name} in {bits}-bit code"


@pytest.mark.parametrize("name", manifest.GUESTS)
def test_results_do_not_depend_on_the_cpu_model(native, name):
    """A CPU with every feature prints the same lines: what differs by model is reduced away."""
    # QEMU's timer follows the host's clock: on a busy host a tick can come too late to be pending.
    for _ in range(3):
        seen = runners.run_qemu(guests.image(name), "max,vendor=GenuineIntel")
        if seen == native(name):
            break
    assert seen == native(name)


def test_deviations_are_what_qemu_prints(native):
    printed = {line: result for name in manifest.GUESTS
               for line, result in runners.results(native(name)[0]).items()}
    for deviation in DEVIATIONS.values():
        assert printed[deviation.line] == deviation.qemu_says, deviation.why


_cache: dict[str, dict[int, list[manifest.Case]]] = {}


def _coverage() -> dict[str, dict[int, list[manifest.Case]]]:
    if not _cache:
        _cache.update(manifest.coverage())
    return _cache
