# SPDX-License-Identifier: GPL-2.0-or-later
"""What a guest sees under an engine, against what it sees natively.

``bt`` must show no hole: every line is the native one, or the manual's where QEMU deviates from
it. So must ``hvm``, but for what the QEMU inside Unicorn does otherwise (deviations.py). ``trap``,
the same ring-deprivileging without the translator, must show the classic ones.
"""

from __future__ import annotations

import pytest
import runners
from deviations import DEVIATIONS, NATIVE_UNICORN

import guests
from guests.sensitive import manifest

pytestmark = pytest.mark.qemu

#: Lines on which a kernel at CPL 1 that nobody translates sees the truth (Robin and Irvine's list).
HOLES = (
    "POPF.sets-if", "POPF.clears-if-after-sti", "POPF.iopl", "SGDT.limit-base",
    "SIDT.limit-base", "SLDT.after-lldt", "STR.register", "SMSW.register", "MOV_FROM_SEG.cs",
    "MOV_FROM_SEG.ss", "LAR.kernel-code", "LSL.kernel-data", "VERR.kernel-data",
    "VERW.kernel-data", "FAR_JMP.memory", "FAR_RET.same-ring",
)
HOLES32 = ("PUSH_SEG.cs", "PUSH_SEG.ss", "POPF.sets-if", "SMSW.register", "FAR_CALL.direct-kernel")


def expected(native_output: str, engine: str = "bt") -> dict[str, str]:
    """The native results, with the manual's where QEMU is known to be wrong.

    Under ``hvm`` the instructions that nobody intercepts are Unicorn's own.
    """
    wanted = {line: DEVIATIONS[line].sdm_says if line in DEVIATIONS else result
              for line, result in runners.results(native_output).items()}
    if engine == "hvm":
        for line in wanted.keys() & NATIVE_UNICORN.keys():
            assert wanted[line] != NATIVE_UNICORN[line].qemu_says, f"{line} is none any more"
            wanted[line] = NATIVE_UNICORN[line].qemu_says
    return wanted


@pytest.mark.parametrize("engine", ["bt", "hvm"])
@pytest.mark.parametrize("name", ["hello", "hello32", "tasks", "apic"])
def test_plain_guests_print_the_same(native, name, engine):
    assert runners.run_bt(guests.image(name), engine) == native(name)


@pytest.mark.parametrize("name", ["hello", "hello32", "tasks"])
def test_the_legacy_board_is_enough_for_them(native, name):
    assert runners.run_bt(guests.image(name), "bt", "--machine", "legacy") == native(name)


@pytest.mark.parametrize("engine", ["trap", "hvm"])
def test_interrupt_controllers_need_no_translator(native, engine):
    assert runners.run_bt(guests.image("apic"), engine) == native("apic")


def test_there_are_no_apics_on_the_legacy_board():
    """Its first instruction that asks for one is #GP, as on a CPU without."""
    output, status = runners.run_bt(guests.image("apic"), "bt", "--machine", "legacy")
    assert (output, status) == ("base register: exception 13\n", 9)


@pytest.mark.parametrize(("engine", "options"), [
    ("bt", []), ("hvm", []), ("hvm", ["--intercept", "all"])], ids=["bt", "hvm", "hvm-all"])
@pytest.mark.parametrize("name", manifest.GUESTS)
def test_no_hole_is_seen(native, name, engine, options):
    # Some cases wait for a timer tick: virtual time keeps a busy host out of what they see.
    output, status = runners.run_bt(guests.image(name), engine, "--deterministic", *options)
    wanted, seen = expected(native(name)[0], engine), runners.results(output)
    if options:                 # with CR0 reads intercepted SMSW is ours, too
        native_lines = expected(native(name)[0])
        wanted |= {line: native_lines[line] for line in wanted if line.startswith("SMSW.")}
    wrong = [f"{line}: {seen.get(line, 'missing')} instead of {result}"
             for line, result in wanted.items() if seen.get(line) != result]
    assert not wrong, f"{len(wrong)} lines differ:\n" + "\n".join(wrong)
    assert list(seen) == list(wanted)
    assert status == 0


@pytest.mark.parametrize(("name", "lines"), [
    ("sensitive", [f"{hole} 64-bit kernel" for hole in HOLES]),
    ("sensitive32", [f"{hole} {bits}-bit kernel" for hole in HOLES32 for bits in (16, 32)])])
def test_trap_shows_the_holes(native, name, lines):
    output, _ = runners.run_bt(guests.image(name), "trap")
    wanted, seen = expected(native(name)[0]), runners.results(output)
    for line in lines:
        assert line in seen, f"the run ended before {line}"
        assert seen[line] != wanted[line], f"{line} is no hole any more"


def test_trap_tells_hello_its_ring():
    output, status = runners.run_bt(guests.image("hello"), "trap")
    assert output.startswith("Hello from ring 1 ")
    assert status == 0
