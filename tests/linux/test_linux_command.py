# SPDX-License-Identifier: GPL-2.0-or-later
"""``bt run linux -- CMD``: output, status, ways to end, and the options that change the machine."""

from __future__ import annotations

import hashlib
import json
import re

import pytest
from linuxrig import PC_ENGINES


def test_the_first_thing_people_type(bt):
    result = bt("run", "linux", "--", "uname", "-a")
    assert result.status == 0
    assert re.fullmatch(r"Linux \S+ 6\.\d+\S+-cloud-amd64 .* x86_64 GNU/Linux\n", result.out)
    assert result.err == ""


@PC_ENGINES
def test_status_and_output_of_a_command(bt, engine):
    result = bt("run", "linux", "--engine", engine, "--",
                "sh", "-c", "uname -a; echo trouble >&2; exit 7")
    assert result.status == 7
    assert result.out.startswith("Linux ") and result.out.count("\n") == 1
    assert result.err == "trouble\n"


def test_much_output_arrives_whole(bt):
    result = bt("run", "linux", "--", "seq", "200000")
    assert result.status == 0
    whole = "".join(f"{i}\n" for i in range(1, 200_001))
    assert (len(result.out), result.out == whole) == (len(whole), True)


@PC_ENGINES
def test_input_reaches_the_command(bt, engine):
    data = bytes(range(256)) * 2000
    result = bt("run", "linux", "--engine", engine, "--", "sha256sum", input=data)
    assert (result.status, result.out) == (0, hashlib.sha256(data).hexdigest() + "  -\n")


@PC_ENGINES
@pytest.mark.parametrize("command", ["poweroff", "halt", "reboot"])
def test_an_orderly_end_is_status_0(bt, command, engine):
    result = bt("run", "linux", "--engine", engine, "--", command, "-f")
    assert (result.status, result.out) == (0, "")


@PC_ENGINES
def test_a_panic_is_status_3_with_a_report(bt, engine):
    result = bt("run", "linux", "--engine", engine, "--",
                "sh", "-c", "echo c > /proc/sysrq-trigger")
    assert result.status == 3
    assert "sysrq_handle_crash" in result.err  # the console that was kept back: a call trace
    assert "bt: the guest died: it said: Kernel panic - not syncing: sysrq triggered" in result.err
    assert re.search(r"rip 0xffffffff\w{8} ", result.err)
    assert "Traceback" not in result.err


def test_init_that_dies_is_a_panic(bt):
    result = bt("run", "linux", "--append", "rdinit=/bin/false", "--", "true")
    assert result.status == 3
    assert "Attempted to kill init" in result.err


@PC_ENGINES
def test_time_limit(bt, engine):
    result = bt("run", "linux", "--engine", engine, "--timeout", "4", "--", "sleep", "1000")
    assert (result.status, result.out, result.err) == (124, "", "bt: time limit\n")


@pytest.mark.parametrize(("size", "least_kb", "most_kb"),
                         [("96M", 40_000, 96 << 10), ("2G", 1_900_000, 2 << 20)])
def test_memory(bt, size, least_kb, most_kb):
    script = "grep MemTotal /proc/meminfo; dmesg | grep -c 'BUG\\|WARNING'"
    result = bt("run", "linux", "--mem", size, "--", "sh", "-c", script)
    total, problems = re.fullmatch(r"MemTotal: +(\d+) kB\n(\d+)\n", result.out).groups()
    assert least_kb < int(total) < most_kb
    assert problems == "0"


def test_too_little_memory_for_this_kernel_is_one_line(bt):
    result = bt("run", "linux", "--mem", "16M", "--", "true")
    assert result.status == 2
    assert result.err.startswith("bt: ") and result.err.count("\n") == 1


def test_stats(bt, tmp_path):
    file = tmp_path / "stats.json"
    assert bt("run", "linux", "--stats", str(file), "--", "true").status == 0
    stats = json.loads(file.read_text())
    assert stats["engine"] == "bt"
    assert 0 < stats["wall_s"]
    assert stats["exits"].keys() == {"control", "memory"}
    assert {"CPUID", "IRET", "MOV_TO_CR", "SWAPGS", "OUT"} <= stats["exits"]["control"].keys()
    assert 0 < stats["translator"]["share"] < 0.5
    assert stats["translator"]["sites"] > 100
    assert stats["audit"]["ring0"] == 0


@pytest.mark.parametrize(("engine", "more"), [
    ("bt", "; head -c 16 /dev/urandom | md5sum"),  # 10 s until the first random byte
    ("hvm", "")])
def test_deterministic_runs_repeat(bt, tmp_path, engine, more):
    """Times of the kernel's log, the date, interrupts, addresses: the same bytes twice."""
    script = "dmesg; date; cat /proc/interrupts /proc/self/maps" + more
    runs, counts = [], []
    for name in ("first", "second"):
        file = tmp_path / name
        runs.append(bt("run", "linux", "--engine", engine, "--deterministic",
                       "--stats", str(file), "--", "sh", "-c", script))
        counts.append(json.loads(file.read_text()))
    assert runs[0].status == 0 and "Linux version" in runs[0].out
    lines = [run.out.splitlines() for run in runs]
    assert [pair for pair in zip(*lines, strict=False) if pair[0] != pair[1]][:3] == []
    assert len(lines[0]) == len(lines[1])
    assert counts[0]["exits"] == counts[1]["exits"]
    assert counts[0]["virtual_s"] == counts[1]["virtual_s"]
