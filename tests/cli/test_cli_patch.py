# SPDX-License-Identifier: GPL-2.0-or-later
"""``bt patch``: the report, the file it writes, and one line for what it cannot do."""

from __future__ import annotations

import json
import os
import stat
import sys

import pytest

import guests
from bt.cli.main import main


@pytest.fixture
def tasks(tmp_path):
    path = tmp_path / "tasks.elf"
    path.write_bytes(guests.image("tasks").read_bytes())
    return path


def test_report_for_people(tasks, tmp_path, capsys):
    out = tmp_path / "out.elf"
    assert main(["patch", str(tasks), "-o", str(out)]) == 0
    text = capsys.readouterr().out
    assert "sensitive instructions among" in text
    for words in ("done in a stub", "made a hypercall", "made a trap", "left as they are"):
        assert words in text
    assert out.stat().st_size > tasks.stat().st_size


def test_report_for_programs(tasks, tmp_path, capsys):
    assert main(["patch", str(tasks), "-o", str(tmp_path / "out"), "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert sum(report["counts"].values()) == len(report["sites"]) > 50
    assert {"address", "bits", "row", "text", "how", "why"} == set(report["sites"][0])
    assert not report["stripped"]


def test_traps(tasks, tmp_path, capsys):
    assert main(["patch", str(tasks), "-o", str(tmp_path / "out"), "--json", "--traps"]) == 0
    counts = json.loads(capsys.readouterr().out)["counts"]
    assert counts["trap"] and not counts["inline"] and not counts["hypercall"]


def test_stripped_says_so(tasks, tmp_path, capsys):
    data = bytearray(tasks.read_bytes())
    data[46:52] = bytes(6)
    tasks.write_bytes(data)
    assert main(["patch", str(tasks), "-o", str(tmp_path / "out")]) == 0
    assert "no symbols: only what the entry point leads to" in capsys.readouterr().out


def test_the_kernel_may_be_the_output(tasks, capsys):
    assert main(["patch", str(tasks), "-o", str(tasks)]) == 0
    assert main(["patch", str(tasks), "-o", str(tasks)]) == 2
    assert capsys.readouterr().err == "bt: tasks.elf: is patched already\n"
    assert stat.S_IMODE(tasks.stat().st_mode) & 0o100


def test_a_patched_kernel_runs(tasks, tmp_path, capsys):
    out = tmp_path / "out.elf"
    assert main(["patch", str(tasks), "-o", str(out)]) == 0
    assert main(["run", str(out), "--engine", "pv", "--timeout", "60"]) == 0
    assert main(["run", str(tasks), "--engine", "pv"]) == 2
    assert "is not paravirtual: `bt patch` makes it so" in capsys.readouterr().err


@pytest.mark.parametrize(("path", "message"), [
    (sys.executable, "not a kernel"),
    ("/nonexistent", "No such file"),
    ("/", "directory"),
    ("/dev/null", "is not a regular file"),
    (os.path.abspath(__file__), "is not an ELF file"),
], ids=["program", "missing", "folder", "device", "text"])
def test_one_line_for_what_is_no_kernel(path, message, tmp_path, capsys):
    out = tmp_path / "out"
    assert main(["patch", path, "-o", str(out)]) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1
    assert not out.exists()


def test_an_output_that_cannot_be_written(tasks, tmp_path, capsys):
    assert main(["patch", str(tasks), "-o", str(tmp_path / "no" / "out")]) == 2
    assert "No such file" in capsys.readouterr().err
    assert sorted(p.name for p in tmp_path.iterdir()) == ["tasks.elf"]


def test_no_output_and_no_command(tasks, capsys):
    assert main(["patch", str(tasks)]) == 2
    assert main(["patch", str(tasks), "-o", "x", "--", "true"]) == 2
    assert capsys.readouterr().err.count("\n") == 2
