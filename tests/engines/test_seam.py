# SPDX-License-Identifier: GPL-2.0-or-later
"""The seam between machine and engines: bt/machine/cpu.py."""

from __future__ import annotations

import subprocess
import sys
from types import SimpleNamespace

import pytest

from bt.core import vcpu as core
from bt.engines import ENGINES
from bt.engines.base import Engine
from bt.machine.cpu import Stop, VirtualCpu
from bt.machine.machine import Machine
from bt.machine.stats import Stats

PROMISED = sorted(name for name in vars(VirtualCpu) if not name.startswith("_"))


def test_stop_reasons_are_the_cores() -> None:
    for stop in Stop:
        assert getattr(core, stop.name) == stop


@pytest.mark.parametrize("name", PROMISED)
def test_the_core_keeps_the_promise(name: str) -> None:
    assert hasattr(core.Vcpu, name)


@pytest.mark.parametrize("name", ENGINES)
def test_each_engine_is_one(name: str) -> None:
    engine = ENGINES[name].open()
    assert isinstance(engine, Engine) and engine.info.name == name
    assert type(engine).make_vcpu is not Engine.make_vcpu


def test_the_machine_needs_no_core_of_its_own() -> None:
    script = "import sys, bt.machine.machine; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True,
                            check=True).stdout.split()
    assert "bt.machine.machine" in loaded
    assert not {"bt.core.vcpu", "unicorn", "bt.engines.unicorn", "bt.engines.xen"} & set(loaded)


class _Idle:
    """A vCPU of no engine: it stops at once, for ``why``."""

    message, fault_address, bits, real_cpl, linear_rip = "it broke", 0x123, 64, 0, 0
    interrupts_enabled, tsc_hz = False, 1000

    def __init__(self, why: Stop) -> None:
        self.why = why
        self.now = 0

    def run(self, deadline_ns=None):
        return self.why

    def now_ns(self):
        self.now += 1
        return self.now

    def registers(self):
        names = "rax rbx rcx rdx rsi rdi rbp rsp rip rflags cs ss ds es fs gs tr ldtr fs_base " \
                "gs_base kernel_gs_base cr0 cr2 cr3 cr4 efer gdtr idtr cpl"
        return dict.fromkeys([*names.split(), *(f"r{n}" for n in range(8, 16))], 0)

    def read_virtual(self, gva, length):
        return None

    def recent_blocks(self):
        return []

    def exit_counts(self):
        return {"HLT": 3, "made up": 1}, {"translation": 2}

    def hypercall_counts(self):
        return {}

    def translator_counts(self):
        from bt.machine.cpu import TranslatorCounts
        return TranslatorCounts()

    def audit_counters(self):
        return 0, 0

    def __getattr__(self, name):
        assert name in PROMISED, f"the machine uses {name}, which nobody promised"
        return lambda *args: None


@pytest.mark.parametrize(("why", "kind", "said"), [
    (Stop.HALTED, "halted", None), (Stop.SHUTDOWN, "died", "it broke"),
    (Stop.VOID, "died", "no memory at physical 0x123"), (Stop.CPU_ERROR, "died", "it broke"),
])
def test_a_machine_runs_any_vcpu_that_keeps_the_promise(monkeypatch, why, kind, said) -> None:
    vcpu = _Idle(why)
    engine = SimpleNamespace(extra_ram=lambda n: 0, make_vcpu=lambda parts: vcpu)
    monkeypatch.setattr(type(ENGINES["bt"]), "open", lambda self: engine)
    machine = Machine(ram_bytes=1 << 20)
    outcome = machine.run(timeout=10)
    assert outcome.kind == kind
    assert said is None or said in outcome.report


def test_stats_are_by_name() -> None:
    stats = Stats(_Idle(Stop.HALTED), "none")
    assert stats.exits == {"control": {"HLT": 3, "made up": 1}, "memory": {"translation": 2}}
    assert stats.to_json()["translator"]["share"] == 0
