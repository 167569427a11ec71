# SPDX-License-Identifier: GPL-2.0-or-later
"""``from bt import Machine``: what docs/api.md promises, on small guests."""

from __future__ import annotations

import subprocess
import sys
from contextlib import suppress

import pytest
from micro import Micro

import guests
from bt import InputError, Machine


def test_importing_bt_loads_nothing() -> None:
    script = "import sys, bt; print([m for m in sys.modules if m.startswith(('bt.', 'unicorn'))])"
    assert subprocess.run([sys.executable, "-c", script], capture_output=True, text=True,
                          check=True).stdout.strip() == "[]"
    with pytest.raises(AttributeError):
        import bt
        print(bt.nothing)


def test_a_guest_by_name_and_its_console() -> None:
    shown = bytearray()
    vm = Machine.guest("hello", console=shown.extend)
    assert vm.console_text == ""
    outcome = vm.run(until="think", timeout=20)
    assert (outcome.kind, outcome.status) == ("until", 0)
    outcome = vm.run(timeout=20)
    assert outcome.kind == "powered-off"
    assert vm.console_text.startswith("Hello from ring 0")
    assert shown.decode() == vm.console_text
    assert vm.stats.exits["control"]
    with pytest.raises(InputError, match="no guest 'hullo'"):
        Machine.guest("hullo")


def test_a_text_counts_once_and_in_order() -> None:
    import re
    vm = Machine.from_elf(guests.image("hello"), deterministic=True)
    assert vm.run(until="o", timeout=20).kind == "until"    # of Hello
    assert vm.run(until="from", timeout=20).kind == "until"
    assert vm.run(until=re.compile(r"CPL=(\d)"), timeout=20).kind == "until"
    assert vm.run(until="Hello", timeout=20).kind == "powered-off"


def test_until_a_function_says_so() -> None:
    vm = Machine.guest("tasks", deterministic=True)
    outcome = vm.run(until=lambda vm: len(vm.console_text) > 10, timeout=20)
    assert outcome.kind == "until" and len(vm.console_text) > 10
    assert vm.run(timeout=20).kind == "powered-off"


def test_breakpoints_by_name_and_address() -> None:
    vm = Machine.guest("tasks", deterministic=True)
    names = [s.name for s in vm.symbols().items()]
    if not names:
        pytest.skip("the sample guests have no symbols")
    found = vm.breakpoint(names[0])
    assert found.address == vm.symbols().address(names[0])


def test_breakpoints_call_or_end_the_run() -> None:
    micro = Micro("mov ecx, 3\n@again:\ncall sub\ndec ecx\njnz @again\nEXIT 5\nsub:\ninc r8\nret")
    micro.enter()
    vm, seen = micro.machine, []
    counting = vm.breakpoint(micro.symbol("sub"), lambda vm: seen.append(vm.registers["rcx"]))
    stopping = vm.breakpoint(micro.symbol("sub") + 3)
    assert [vm.run(timeout=20).kind for _ in range(2)] == ["breakpoint", "breakpoint"]
    assert seen == [3, 2] and counting.hits == 2
    stopping.remove()
    stopping.remove()
    assert vm.debugger.all() == [counting]
    outcome = vm.run(timeout=20)
    assert (outcome.kind, outcome.status, seen) == ("powered-off", 5, [3, 2, 1])
    with pytest.raises(InputError, match="no symbol 'nowhere'"):
        vm.breakpoint("nowhere")
    with pytest.raises(InputError, match="is no address"):
        vm.breakpoint(-1)


def test_what_a_breakpoint_raises_ends_the_run() -> None:
    micro = Micro("nop\nhere:\nnop\nEXIT 5")
    micro.enter()

    def broken(vm: object) -> None:
        raise LookupError("in the action")

    found = micro.machine.breakpoint(micro.symbol("here"), broken)
    with pytest.raises(LookupError, match="in the action"):
        micro.machine.run(timeout=20)
    assert micro.machine.registers["rip"] == micro.symbol("here")
    found.remove()
    assert micro.machine.run(timeout=20).status == 5


def test_step_and_translate() -> None:
    micro = Micro("mov eax, 1\nmov eax, 2\nhere:\nmov eax, 3\nEXIT 5")
    micro.enter()
    vm = micro.machine
    vm.breakpoint(micro.symbol("start"))
    vm.run(timeout=20)
    assert vm.step(2) is None
    assert (vm.registers["rip"], vm.registers["eax"]) == (micro.symbol("here"), 2)
    assert vm.translate(micro.symbol("here")) == micro.symbol("here")
    assert vm.translate(0xFFFF_8000_0000_0000) is None
    vm.registers["rax"] = 0
    outcome = vm.step(10)
    assert outcome is not None and outcome.status == 5


def test_the_clock_stands_still_between_runs() -> None:
    import time
    micro = Micro("@forever:\npause\njmp @forever", deterministic=False)
    micro.enter()
    micro.machine.run(timeout=0.05)
    before = micro.machine.vcpu.now_ns()
    time.sleep(0.3)
    micro.machine.run(timeout=0.01)
    assert micro.machine.vcpu.now_ns() - before < 250_000_000


@pytest.mark.slow
@pytest.mark.parametrize("engine", ["bt", "pv"])
def test_linux_from_boot_to_a_conversation(engine: str) -> None:
    vm = Machine.linux(engine=engine)
    if engine == "bt":
        start = vm.breakpoint("start_kernel")
        assert vm.run(timeout=60).kind == "breakpoint"
        assert vm.symbols().describe(vm.registers["rip"]) == "start_kernel"
        start.remove()
    opened: list[str] = []

    def note(vm: Machine) -> None:
        with suppress(InputError):      # a name in a page that the program has not touched yet
            opened.append(vm.memory.read_text(vm.registers["rsi"]))

    vm.breakpoint("do_sys_openat2", note)
    assert vm.run(until="# ", timeout=120).kind == "until", vm.console_text[-500:]
    vm.send("cat /proc/version\n")
    assert vm.run(until="Linux version", timeout=60).kind == "until"
    assert vm.run(until="# ", timeout=60).kind == "until"
    assert "/proc/version" in opened


@pytest.mark.slow
def test_linux_runs_a_command() -> None:
    vm = Machine.linux(["sh", "-c", "echo out; echo err >&2; exit 7"])
    outcome = vm.run(timeout=60)
    assert (outcome.kind, outcome.status) == ("powered-off", 7)
    assert sorted(vm.output.split()) == [b"err", b"out"]
