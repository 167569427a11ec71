#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0-or-later
"""What one sensitive instruction costs: as a trap there and back, as an inline stub, under hvm.

    python tools/bench_exits.py [--runs N] [--json] [INSTRUCTION...]

A small flat 64-bit guest runs each instruction in a loop and reads the time around the loop with
RDTSC, which counts nanoseconds here. The same loop with harmless instructions in the places of the
sensitive ones is subtracted, so what is left is the price of virtualizing them, plus what they
would have cost anyway (a nanosecond or less). Sites stay traps when the machine is made with
``hot=0``; otherwise they become stubs while the loop warms up, where there is a stub for them.
Under ``hvm`` the guest is in AMD-V guest mode, where an instruction exits if it is among the
minimal intercepts, and else runs on the CPU.

A pass over the loop is short, and of each run's passes the fastest counts: what the host did to the
others is no cost of ours. Each of the runs is a new machine; medians of the runs are shown.

Also the translator's share of a Linux boot, out of `bt run linux --stats`.
"""

from __future__ import annotations

import argparse
import importlib
import json
import struct
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import _bench
from _bench import BenchError

_BASE = 0x100000  # where the code goes
_RESULTS = 0x200000  # one 64-bit time for each pass
_DATA = 0x300000  # for instructions that need memory
_RAM = 16 << 20
_COPIES = 16  # sites in the loop
_LOOPS = 2000  # times round in a timed pass: a few ms for most
_PASSES = 30  # timed passes in a run; the fastest counts
_TIME_LIMIT_S = 60.0


@dataclass(frozen=True)
class Case:
    """One instruction in a loop. Every ``body`` has five bytes that a stub's jump may replace.

    ``row``: its name in translator.sensitive.TABLE; ``body``: assembly with the instruction;
    ``empty``: the same without it; ``setup``: runs once before; ``trap_goal``, ``stub_goal``: ns.
    """

    row: str
    body: str
    empty: str
    setup: str = "nop"
    trap_goal: float | None = None
    stub_goal: float | None = None
    hvm_goal: float | None = None


_NOP3, _NOP4 = "nop dword ptr [rax]", "nop dword ptr [rax + 8]"

CASES: dict[str, Case] = {
    "cli": Case("CLI", f"cli; {_NOP4}", f"nop; {_NOP4}", trap_goal=120, stub_goal=15),
    "sti": Case("STI", f"sti; {_NOP4}", f"nop; {_NOP4}"),
    "pushf": Case("PUSHF", f"pushfq; pop rax; {_NOP3}", f"push rbx; pop rax; {_NOP3}",
                  trap_goal=120, stub_goal=15),
    "popf": Case("POPF", f"push rbx; popfq; {_NOP4}", f"push rbx; pop rax; {_NOP4}",
                 setup="mov ebx, 2"),
    "mov-from-cs": Case("MOV_FROM_SEG", f"mov eax, cs; {_NOP3}", f"mov eax, ebx; {_NOP3}"),
    "mov-from-cr2": Case("MOV_FROM_CR", "mov rax, cr2; nop; nop", "mov rax, rbx; nop; nop"),
    "swapgs": Case("SWAPGS", "swapgs; nop; nop", f"{_NOP3}; nop; nop"),
    "rdtsc": Case("RDTSC", "rdtsc", "mov eax, ebx"),
    "cpuid": Case("CPUID", "xor eax, eax; cpuid", "xor eax, eax; mov ebx, eax",
                  setup="mov ebp, esp", hvm_goal=150),
    "iret": Case("IRET", "mov rax, rsp; push rdi; push rax; push rbx; push rsi; "
                 "lea rax, [rip + 3]; push rax; iretq",
                 "mov rax, rsp; push rdi; push rax; push rbx; push rsi; "
                 "lea rax, [rip + 3]; push rax; mov rsp, [rsp + 24]",
                 setup="mov ebx, 2; mov esi, 0x10; mov edi, 0x18"),
    "in-absent-port": Case("IN", "in al, dx", "mov eax, ebx", setup="mov edx, 0x3333"),
    "out-to-device": Case("OUT", "out dx, al", "mov eax, ebx", setup="mov edx, 0x70"),
    "invlpg": Case("INVLPG", f"invlpg [{_DATA:#x}]", "mov eax, ebx"),
    "mov-to-cr3": Case("MOV_TO_CR", "mov cr3, rbx", "mov rax, rbx", setup="mov rbx, cr3"),
}
#: These cost microseconds: fewer rounds.
_SLOW = {"out-to-device": 20, "mov-to-cr3": 10}


def program(body: str, setup: str, loops: int, passes: int) -> str:
    """Assembly of the guest: ``passes`` timed loops, each time stored at _RESULTS, then the end.

    The counters live in R12-R15, which no body touches.
    """
    return f"""
        {setup}
        mov r13d, {passes}
        mov r14d, {_RESULTS}
    again:
        mov r12d, {loops}
        mov r8, rdx
        rdtsc
        shl rdx, 32
        lea r15, [rdx + rax]
        mov rdx, r8
    around:
        {"; ".join([body] * _COPIES)}
        dec r12d
        jnz around
        mov r8, rdx
        rdtsc
        shl rdx, 32
        add rax, rdx
        mov rdx, r8
        sub rax, r15
        mov [r14], rax
        add r14, 8
        dec r13d
        jnz again
        mov dx, 0x501
        xor eax, eax
        out dx, al
        hlt
    """


def assemble(text: str) -> bytes:
    """Machine code for _BASE."""
    keystone = importlib.import_module("keystone")
    code, _ = keystone.Ks(keystone.KS_ARCH_X86, keystone.KS_MODE_64).asm(text, _BASE, as_bytes=True)
    return bytes(code)


@dataclass(frozen=True)
class Loop:
    """What one run of a program gave: ns for each copy, exits of its row, stubs made."""

    ns: float
    exits: int
    stubs: int


def run_loop(case: Case, body: str, *, hot: int, loops: int, engine: str = "bt") -> Loop:
    """Run ``body`` on a fresh machine. The first pass warms up and is not looked at."""
    machines = importlib.import_module("bt.machine.machine")
    machine = machines.Machine(ram_bytes=_RAM, hot=hot, engine=engine)
    with tempfile.NamedTemporaryFile(suffix=".bin") as file:
        file.write(assemble(program(body, case.setup, loops, _PASSES + 1)))
        file.flush()
        machine.load(Path(file.name), kind="flat", base=_BASE, bits=64)
    outcome = machine.run(timeout=_TIME_LIMIT_S)
    if outcome.kind != "powered-off" or outcome.status != 0:
        raise BenchError(f"the {case.row} loop ended otherwise: {outcome.kind} "
                         f"{(outcome.report or '').splitlines()[:1]}")
    times = struct.unpack(f"<{_PASSES}Q", machine.ram.read(_RESULTS + 8, 8 * _PASSES))
    stats = machine.stats.to_json()
    return Loop(min(times) / (loops * _COPIES), stats["exits"]["control"].get(case.row, 0),
                stats["translator"]["stub_installed"])


def cost(name: str, runs: int) -> dict[str, Any]:
    """Price of one case in ns; ``stub_ns`` is None where the sites stayed traps."""
    case = CASES[name]
    loops = _LOOPS // _SLOW.get(name, 1)
    hot = importlib.import_module("bt.machine.machine").HOT
    executed = loops * _COPIES * (_PASSES + 1)
    loop = _bench.alternate({
        "empty": lambda: run_loop(case, case.empty, hot=0, loops=loops),
        "trap": lambda: run_loop(case, case.body, hot=0, loops=loops),
        "stub": lambda: run_loop(case, case.body, hot=hot, loops=loops),
        "hvm empty": lambda: run_loop(case, case.empty, hot=0, loops=loops, engine="hvm"),
        "hvm": lambda: run_loop(case, case.body, hot=0, loops=loops, engine="hvm"),
    }, runs)
    for run in loop["trap"]:
        if run.exits < executed:
            raise BenchError(f"{run.exits} traps of {case.row} where {executed} were executed")
    base = _bench.median([run.ns for run in loop["empty"]])
    # Each site traps until it is hot; far more than that, and the loop did not run on stubs.
    on_stubs = all(run.stubs >= _COPIES and run.exits < executed / 10 for run in loop["stub"])
    return {"row": case.row, "empty_ns": base,
            "trap_ns": _bench.median([run.ns for run in loop["trap"]]) - base,
            "stub_ns": _bench.median([run.ns for run in loop["stub"]]) - base if on_stubs else None,
            "hvm_ns": _bench.median([run.ns for run in loop["hvm"]])
            - _bench.median([run.ns for run in loop["hvm empty"]])}


def translator_share(runs: int) -> dict[str, float]:
    """The translator's share of a boot of Linux, by bt's own count: medians."""
    shares, seconds = [], []
    for number in range(runs):
        _bench.progress(f"boot {number + 1} of {runs}")
        with tempfile.TemporaryDirectory() as folder:
            stats = Path(folder, "stats")
            _bench.check(_bench.run_timed(_bench.bt_linux(["true"], mem=_bench.MEM, stats=stats)),
                         0, "bt run linux")
            counted = json.loads(stats.read_text())["translator"]
        shares.append(counted["share"])
        seconds.append(counted["seconds"])
    return {"share": _bench.median(shares), "seconds": _bench.median(seconds)}


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """All numbers of this script, as JSON data."""
    exits = {}
    for name in options.instructions or CASES:
        _bench.progress(name)
        exits[name] = cost(name, options.runs)
    results: dict[str, Any] = {"runs": options.runs, "exits": exits}
    if not options.instructions:
        results["translator"] = translator_share(options.runs)
    return results


def show(results: Mapping[str, Any]) -> str:
    """The table for people."""
    rows = [["one instruction", "trap, ns", "goal", "stub, ns", "goal", "hvm, ns", "goal"]]
    for name, numbers in results["exits"].items():
        case = CASES[name]
        stub = numbers["stub_ns"]
        rows.append([name, f"{numbers['trap_ns']:.0f}", _goal(case.trap_goal),
                     "-" if stub is None else f"{stub:.1f}", _goal(case.stub_goal),
                     f"{numbers['hvm_ns']:.0f}", _goal(case.hvm_goal)])
    text = _bench.table(rows)
    if "translator" in results:
        share = results["translator"]
        text += (f"\n\ntranslator's share of the boot: {share['share']:.1%} "
                 f"({share['seconds']:.3f} s); goal 10%")
    return text


def _goal(goal: float | None) -> str:
    return "" if goal is None else f"{goal:.0f}"


def options(argv: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = _bench.parser("Price of sensitive instructions, and the translator's share of a boot.")
    parser.add_argument("instructions", nargs="*", metavar="INSTRUCTION",
                        help=f"only these, and no boot: {', '.join(CASES)}")
    result = parser.parse_args(argv)
    for name in result.instructions:
        if name not in CASES:
            parser.error(f"no instruction {name!r}: one of {', '.join(CASES)}")
    return result


if __name__ == "__main__":
    sys.exit(_bench.main(measure, show, options()))
