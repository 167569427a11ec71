# SPDX-License-Identifier: GPL-2.0-or-later
"""The benchmark scripts without their benchmarks: arguments, statistics, output. Nothing is timed.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys

import _bench
import bench_boot
import bench_exits
import bench_guest
import pytest
from _bench import MB, BenchError, Timed


def timed(wall_s=1.0, rss=100 * MB, status=0, lines=(), errors=""):
    return Timed(wall_s, rss, status, tuple(lines), errors)


def python(code):
    return [sys.executable, "-c", code]


# Running a program


def test_run_gives_status_output_and_errors():
    run = _bench.run_timed(python(
        "import sys; print('one'); print('two'); print('why', file=sys.stderr); sys.exit(5)"))
    assert (run.status, run.output, run.errors) == (5, ["one", "two"], "why\n")
    assert 0 < run.lines[0][0] <= run.lines[1][0] <= run.wall_s


def test_run_counts_the_childs_memory():
    # Measured by a process of its own: a child's peak starts as its parent's, and ours is large.
    measure = f"import sys; sys.path.append({str(_bench.ROOT / 'tools')!r})" + """
import _bench
small, large = (_bench.run_timed([sys.executable, "-c", f"b'x' * ({mb} << 20)"]) for mb in (0, 150))
print(large.rss - small.rss)
"""
    run = _bench.run_timed(python(measure))
    assert run.status == 0, run.errors
    assert int(run.output[0]) > 100 * MB


def test_run_has_no_input():
    assert _bench.run_timed(python("import sys; print(repr(sys.stdin.read()))")).output == ["''"]


def test_run_gives_the_signal_that_ended_it():
    run = _bench.run_timed(python("import os; os.kill(os.getpid(), 9)"))
    assert run.status == -9


def test_run_of_a_missing_program_is_one_line():
    with pytest.raises(BenchError, match="cannot run /no/such: No such file"):
        _bench.run_timed(["/no/such"])


def test_check_passes_the_run_on_or_says_its_last_words():
    run = timed(status=3, errors="first\nlast words\n")
    assert _bench.check(run, 3, "x") is run
    with pytest.raises(BenchError, match="^x ended with status 3: last words$"):
        _bench.check(run, 0, "x")


def test_turns_alternate_and_the_first_does_not_count():
    order = []

    def subject(name):
        order.append(name)
        return len(order)

    results = _bench.alternate({"a": lambda: subject("a"), "b": lambda: subject("b")}, 3)
    assert order == ["a", "b"] * 4
    assert results == {"a": [3, 5, 7], "b": [4, 6, 8]}


# The same guest on both


def test_qemu_boots_what_bt_boots(tmp_path, monkeypatch):
    """Kernel, initramfs and command line are those that bt's own command line leads to."""
    from bt.cli import devices, main, plan
    from guests.linux import fetch

    for name in ("kernel", "busybox"):
        (tmp_path / name).write_bytes(b"\x7fELF\0[\0[[\0ash\0\0")
        monkeypatch.setattr(fetch, name, lambda *_, name=name: tmp_path / name)
    monkeypatch.setattr(plan, "has_input", lambda: False)  # the child gets /dev/null
    arguments = _bench.bt_linux(["sh", "-c", "exit 7"], mem=96 * MB)
    ours, command = main.split_command(arguments[arguments.index("run"):])
    options = main.build_parser("run").parse_args(ours)
    options.command = command
    planned = plan.make_plan(options, devices.Devices(options))

    with _bench.qemu_linux(["sh", "-c", "exit 7"], mem=96 * MB) as qemu:
        value = {key: qemu[qemu.index(key) + 1] for key in ("-kernel", "-append", "-m")}
        with open(qemu[qemu.index("-initrd") + 1], "rb") as initrd:
            assert initrd.read() == planned.initrd
    assert value == {"-kernel": str(planned.path), "-append": planned.cmdline, "-m": "96M"}
    assert options.mem == 96 * MB
    assert "-accel" in qemu and "tcg" in qemu


def test_exit_device_status():
    assert [_bench.qemu_status(n) for n in (0, 7)] == [1, 15]


# Statistics


def test_boot_summary():
    bt = [timed(2.0, 300 * MB), timed(9.0, 310 * MB), timed(1.0, 290 * MB)]
    qemu = [timed(4.0, 500 * MB), timed(4.5), timed(3.0)]
    hello = [timed(0.2), timed(0.1), timed(0.3)]
    result = bench_boot.summary(bt, qemu, hello, 256 * MB, 90 * MB)
    assert (result["bt_s"], result["qemu_s"], result["ratio"]) == (2.0, 4.0, 0.5)
    assert result["hello_s"] == 0.2
    assert (result["rss_overhead_mb"], result["rss_peak_mb"], result["rss_vmm_mb"]) == (54, 310, 90)
    assert result["qemu_rss_peak_mb"] == 500
    json.dumps(result)


def test_guest_times_from_output():
    lines = [(1.0, "clock 100.0"), (1.5, "dd 100.0 100.4"), (1.9, "loop 100.4 100.5"),
             (2.0, "clock 101.0")]
    seconds, error = bench_guest.parse(timed(lines=lines), ["dd", "loop"])
    assert seconds == pytest.approx({"dd": 0.4, "loop": 0.1})
    assert error == pytest.approx(0)


@pytest.mark.parametrize("lines", [
    [],
    [(1.0, "clock 1.0"), (2.0, "clock 2.0")],
    [(1.0, "clock 1.0"), (1.0, "dd 1.0 2.0")],
    [(1.0, "clock"), (1.0, "dd 1.0 2.0"), (2.0, "clock 2.0")],
    [(1.0, "clock 1.0"), (1.0, "dd 1.0 two"), (2.0, "clock 2.0")],
])
def test_guest_output_that_is_not_ours_is_refused(lines):
    with pytest.raises(BenchError):
        bench_guest.parse(timed(lines=lines), ["dd"])


def test_guest_summary_is_a_ratio_of_medians():
    runs = {"bt": [({"dd": s}, 0.001) for s in (1.0, 3.0, 2.0)],
            "qemu": [({"dd": s}, -0.003) for s in (1.0, 0.5, 8.0)]}
    result = bench_guest.summary(runs, ["dd"])
    assert result["workloads"]["dd"]["ratio"] == 2.0
    assert result["clock_error"] == {"bt": 0.001, "qemu": -0.003}


def test_a_guest_clock_that_is_wrong_gives_no_results():
    runs = {"bt": [({"dd": 1.0}, -0.5)], "qemu": [({"dd": 1.0}, 0.0)]}
    with pytest.raises(BenchError, match="under bt is off by -50.0%"):
        bench_guest.summary(runs, ["dd"])


def test_guest_script_is_a_shell_script_that_names_each_workload():
    text = bench_guest.script(["loop", "dd"])
    subprocess.run(["sh", "-n", "-c", text], check=True)
    assert "echo loop $t" in text and "echo dd $t" in text and "gzip" not in text


SMAPS = """\
7f0000000000-7f0010000000 rw-s 00000000 00:01 1234   /dev/zero (deleted)
Size:             262144 kB
KernelPageSize:        4 kB
Rss:               70000 kB
Pss:               70000 kB
7f0020000000-7f0020100000 rw-p 00000000 00:00 0
Size:               1024 kB
Rss:                 500 kB
7f0030000000-7f0030100000 r-xp 00000000 08:01 99     /usr/lib/x.so
Size:               2048 kB
Rss:                1500 kB
"""


def test_guest_ram_is_told_from_the_rest():
    assert _bench.split_rss(SMAPS, 256 * MB) == (70000 * 1024, 2000 * 1024)
    assert _bench.split_rss(SMAPS, 128 * MB) == (0, 72000 * 1024)


# The programs of bench_exits


@pytest.mark.parametrize("name", bench_exits.CASES)
def test_exit_loops_hold_the_instruction_and_their_empty_twins_do_not(name):
    from translator.scanner import scan

    case = bench_exits.CASES[name]

    def rows(body):
        code = bench_exits.assemble(bench_exits.program(body, case.setup, 1, 1))
        return [found.row.name for found in scan(code, 0x100000, 64)]

    extra = rows(case.body)
    for row in rows(case.empty):
        extra.remove(row)
    assert set(extra) == {case.row} and len(extra) >= 16


@pytest.mark.parametrize("name", ["cli", "pushf", "popf", "sti", "swapgs", "mov-from-cs",
                                  "mov-from-cr2"])
def test_exit_loops_leave_room_for_a_stub(name):
    """Otherwise the script would report that there is no stub where only its loop is at fault."""
    from translator.rewriter import plan_stub
    from translator.scanner import scan

    case = bench_exits.CASES[name]
    code = bench_exits.assemble(case.body)
    found = [one for one in scan(code, 0x100000, 64) if one.row.name == case.row]
    assert plan_stub(code, found[0]) is not None


# Arguments and output


@pytest.mark.parametrize("module", [bench_boot, bench_guest, bench_exits])
def test_defaults(module):
    options = module.options([])
    assert (options.runs, options.json) == (5, False)
    assert module.options(["--runs", "2", "--json"]).runs == 2


@pytest.mark.parametrize("module,arguments", [
    (bench_boot, ["--runs", "0"]),
    (bench_boot, ["--runs", "many"]),
    (bench_boot, ["--mem", "a lot"]),
    (bench_boot, ["--mem", "1000"]),
    (bench_guest, ["mine-bitcoin"]),
    (bench_exits, ["mov"]),
])
def test_bad_arguments(module, arguments, capsys):
    with pytest.raises(SystemExit) as end:
        module.options(arguments)
    assert end.value.code == 2
    assert arguments[-1] in capsys.readouterr().err


def test_memory_is_read_as_bt_reads_it():
    assert bench_boot.options(["--mem", "96M"]).mem == 96 * MB
    assert bench_guest.options([]).mem == 256 * MB


def test_help_needs_nothing_built(script, tmp_path):
    copy = tmp_path / "tools"
    copy.mkdir()
    for source in script.parent.glob("*.py"):
        (copy / source.name).write_bytes(source.read_bytes())
    run = subprocess.run([sys.executable, "-I", "-S", "-c",
                          f"import runpy, sys; sys.argv = ['x', '--help']; "
                          f"sys.path.insert(0, {str(copy)!r}); "
                          f"runpy.run_path({str(copy / script.name)!r}, run_name='__main__')"],
                         capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    assert "--runs" in run.stdout


@pytest.mark.parametrize("name", ["bench_boot.py", "bench_guest.py"])
def test_no_qemu_is_one_line(name, monkeypatch, capsys):
    module = {"bench_boot.py": bench_boot, "bench_guest.py": bench_guest}[name]
    monkeypatch.setattr(sys, "argv", [name])
    monkeypatch.setenv("PATH", "/nowhere")
    assert _bench.main(module.measure, module.show, module.options([])) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.strip().count("\n") == 0
    assert "qemu-system-x86_64 is not installed" in err


def test_bad_input_is_one_line_and_a_bug_is_not(capsys):
    from bt.errors import InputError

    def fails(error):
        def measure(_):
            raise error
        return measure

    options = argparse.Namespace(json=False)
    assert _bench.main(fails(InputError("no apt")), str, options) == 2
    assert "no apt" in capsys.readouterr().err
    with pytest.raises(ZeroDivisionError):
        _bench.main(fails(ZeroDivisionError()), str, options)


BOOT = bench_boot.summary([timed(2.0)], [timed(4.0)], [timed(0.2)], 256 * MB, 90 * MB)
GUEST = bench_guest.summary({"bt": [({"dd": 1.0}, 0.0)], "qemu": [({"dd": 2.0}, 0.0)]}, ["dd"])
EXITS = {"cli": {"row": "CLI", "empty_ns": 1.0, "trap_ns": 52.4, "stub_ns": 14.2,
                 "hvm_ns": 71.6},
         "rdtsc": {"row": "RDTSC", "empty_ns": 1.0, "trap_ns": 60.0, "stub_ns": None,
                   "hvm_ns": 84.0}}


@pytest.mark.parametrize("module,results,expected", [
    (bench_boot, {"qemu": "QEMU 7", "engine": "bt", "mem_mb": 256, "runs": 1, **BOOT},
     ["bt / QEMU", "0.50", "-156"]),
    (bench_guest, {"qemu": "QEMU 7", "runs": 1, **GUEST}, ["1-byte dd", "0.50", "2.0"]),
    (bench_exits, {"runs": 1, "exits": EXITS, "translator": {"share": 0.034, "seconds": 0.044}},
     ["52", "14.2", "72", "3.4%"]),
])
@pytest.mark.parametrize("as_json", [True, False])
def test_output(module, results, expected, as_json, capsys):
    options = argparse.Namespace(json=as_json)
    assert _bench.main(lambda _: results, module.show, options) == 0
    out = capsys.readouterr().out
    if as_json:
        parsed = json.loads(out)
        assert {"cpu", "cores"} <= set(parsed.pop("machine"))
        assert parsed == results
    else:
        assert "cores" in out.splitlines()[0]
        for text in expected:
            assert text in out


def test_table_is_aligned():
    assert _bench.table([["a", "bb"], ["long", "1"]]).splitlines() == [
        "a     bb", "----  --", "long   1"]
