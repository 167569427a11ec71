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


@pytest.mark.parametrize(("name", "expected"), [
    ("hello", HELLO), ("hello32", HELLO32), ("tasks", TASKS)])
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
    output, status = runners.run_qemu(guests.image(name), "max,vendor=GenuineIntel")
    assert (output, status) == native(name)


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
