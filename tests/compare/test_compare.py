# SPDX-License-Identifier: GPL-2.0-or-later
"""`bt compare`: what it accepts, how it reads guests, what its table, JSON and chart hold.

No test here looks at how long anything took.
"""

from __future__ import annotations

import dataclasses
import json
import platform
import subprocess
import sys
import xml.etree.ElementTree as ET

import pytest

import guests
from bt.cli import main as cli
from bt.compare import chart, native, runner, table, workloads
from bt.compare.workloads import WorkloadFailed
from bt.errors import InputError

TRANSLATOR = {"seconds": 0.25, "share": 0.1, "instructions_scanned": 1234567, "sites": 44,
              "block_scanned": 143, "stub_installed": 3, "stub_taken_back": 0}


SAMPLED = {"samples": 900, "interval_s": 0.0005, "vmm_s": 0.25,
           "seconds": {"guest": 0.5, "unicorn": 0.25, "core": 0.2, "python": 0.05,
                       "elsewhere": 0.0}}


def engine(ns, *, wall=1.5, guest=None, hypercalls=None, sampled=SAMPLED):
    return {"wall_s": wall, "wall_runs_s": [wall], "cpu_s": 1.25, "cpu_runs_s": [1.25],
            "guest_s": guest, "guest_runs_s": [],
            "ns": ns, "exits": {"control": {"CLI": 2, "IRET": 70000}, "memory": {"TLB flush": 4}},
            "hypercalls": hypercalls or {}, "translator": TRANSLATOR, "sampled": sampled}


def results(engines, native_ns=None, workload="nano"):
    return {"workload": workload, "what": "a <test>", "runs": 1, "native": native_ns,
            "machine": {"cpu": "a CPU", "cores": 2, "load": 0.5, "python": "3.11"},
            "engines": engines}


NANO = results({"trap": {"error": "the guest died: an endless fault loop at address 0x1000"},
                "bt": engine({"syscall": 126.0, "ptemod": 0.5}),
                "pv": engine({"syscall": 63.0, "ptemod": 0.5},
                             hypercalls={"iret": 9, "halt": 1, "(event upcalls)": 5})},
               {"ns": {"syscall": 42.0, "ptemod": 1.0}})


def rows(text):
    """{title: cells} of a table; the cells of an engine that has nothing are left out."""
    found = {}
    for line in text.splitlines():
        if cells := [cell.strip() for cell in line.replace("  ", "\0").split("\0") if cell]:
            found[cells[0]] = cells[1:]
    return found


# The command line ---------------------------------------------------------------------------------


def test_every_engine_on_unicorn_is_compared_unless_told_otherwise(monkeypatch):
    seen = []
    monkeypatch.setattr(runner, "compare", lambda *arguments: seen.append(arguments[1]) or NANO)
    assert cli.main(["compare"]) == 0
    assert seen == [["trap", "bt", "pv", "hvm"]]


@pytest.mark.parametrize("arguments, says", [
    (["bogus"], "no workload 'bogus': one of nano, syscall"),
    (["--engines", "foo"], "no engine 'foo'"),
    (["--engines", "bt,,pv"], "no engine ''"),
    (["--engines", "bt,bt"], "named twice"),
    (["--runs", "0"], "not a number"),
    (["--runs", "٣"], "not a number"),
    (["--count", "-1"], "--count"),
    (["nano", "--count", "3"], "8 to 10000000"),
    (["gzip", "--count", "3"], "nothing to count"),
    (["boot", "--patched"], "goes with nano and tasks"),
    (["--chart", "x.png"], "SVG"),
    (["--chart", "/no/such/folder/x.svg"], "no folder"),
    (["--", "true"], "takes no command"),
])
def test_bad_input_is_one_line_and_status_2(capsys, monkeypatch, arguments, says):
    monkeypatch.setattr(runner, "compare", lambda *_: pytest.fail("it was run"))
    assert cli.main(["compare", *arguments]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert says in err and err.count("\n") == 1


def test_engines_and_runs_reach_the_runner(capsys, monkeypatch):
    seen = []

    def fake(workload, engines, runs, progress):
        seen.append((workload.name, engines, runs))
        return NANO

    monkeypatch.setattr(runner, "compare", fake)
    assert cli.main(["compare", "divzero", "--engines", "pv,bt", "--runs", "7", "--json"]) == 0
    assert seen == [("divzero", ["pv", "bt"], 7)]
    assert json.loads(capsys.readouterr().out) == NANO


def test_chart_is_written(tmp_path, monkeypatch):
    monkeypatch.setattr(runner, "compare", lambda *_: NANO)
    path = tmp_path / "c.svg"
    assert cli.main(["compare", "--chart", str(path)]) == 0
    assert ET.parse(path).getroot().tag.endswith("svg")


# Workloads ----------------------------------------------------------------------------------------


def test_every_name_is_a_workload():
    for name in workloads.names():
        assert workloads.get(name).name == name
    with pytest.raises(InputError):
        workloads.get("")


def test_the_seven_of_the_paper():
    assert workloads.NANO == ("syscall", "in", "cr8wr", "callret", "pgfault", "divzero", "ptemod")


def test_a_paravirtual_engine_gets_the_paravirtual_build():
    nano = workloads.get("in", 800)
    assert nano.arguments("bt") == ["nano", "--append", "in 800"]
    assert nano.arguments("pv") == ["nano-pv", "--append", "in 800"]
    assert workloads.get("boot").arguments("pv") == ["linux", "--", "true"]


def test_a_patched_kernel_in_place_of_the_paravirtual_build():
    for name in ("nano", "tasks"):
        workload = workloads.get(name, patched=True)
        assert workload.arguments("bt")[0] == name
        path = workload.arguments("pv")[0]
        assert path.endswith("-patched.elf") and guests.image(name).stem in path
        assert "`bt patch`" in workload.what


def test_forkwait_counts():
    assert "-lt 123 ]" in workloads.get("forkwait", 123).arguments("bt")[-1]


@pytest.mark.skipif(platform.machine() != "x86_64" or sys.platform != "linux",
                    reason="the program is for Linux on x86-64")
def test_the_getppid_program_runs_on_linux(tmp_path):
    program = tmp_path / "p"
    program.write_bytes(workloads.getppid_program(1000))
    program.chmod(0o755)
    assert subprocess.run([program], timeout=10, check=False).returncode == 0


def test_getppid_is_written_by_the_guests_shell(tmp_path):
    script = workloads.get("getppid", 77).arguments("pv")[-1].replace("/tmp/p", str(tmp_path / "p"))
    write = script[:script.index(";")]
    subprocess.run(["sh", "-c", write], check=True, timeout=10)
    assert (tmp_path / "p").read_bytes() == workloads.getppid_program(77)
    with pytest.raises(InputError):
        workloads.get("getppid", 0)


def test_the_fastest_pass_counts():
    text = "in 100 900\nin 100 500\nin 100 700\nnoise\nsyscall 10 20\n"
    assert workloads.read_nano(text, ("syscall", "in")) == {"syscall": 2.0, "in": 5.0}


@pytest.mark.parametrize("text", ["", "in 0 5\n", "in x 5\n", "syscall 8 8\n"])
def test_no_nano_result(text):
    with pytest.raises(WorkloadFailed):
        workloads.read_nano(text, ("in",))


def test_the_guests_clock():
    reading = workloads.read_clock("noise\nclock 100.25 101.50\n")
    assert reading.guest_s == pytest.approx(1.25)
    for text in ("", "clock 1\n", "clock a b\n"):
        with pytest.raises(WorkloadFailed):
            workloads.read_clock(text)


# The runner ---------------------------------------------------------------------------------------


def fake_run(log, fails=()):
    def run(workload, engine, *, sample=False):
        log.append(f"{engine}, sampled" if sample else engine)
        if log[-1] in fails:
            raise WorkloadFailed("it will not")
        stats = {"exits": {"control": {}, "memory": {}}, "hypercalls": {}, "translator": TRANSLATOR,
                 "sampled": SAMPLED}
        return runner.Run(float(len(log)), 0.5, stats, workloads.Reading())
    return run


def test_engines_take_turns_and_the_warm_up_does_not_count(monkeypatch):
    log = []
    monkeypatch.setattr(runner, "run_once", fake_run(log))
    found = runner.compare(workloads.get("boot"), ["bt", "pv"], 2)
    assert log == ["bt", "pv"] * 3 + ["bt, sampled", "pv, sampled"]
    assert found["engines"]["bt"]["wall_runs_s"] == [3.0, 5.0]
    assert found["engines"]["pv"]["wall_s"] == 5.0
    assert found["engines"]["pv"]["cpu_s"] == 0.5
    assert found["engines"]["pv"]["sampled"] == SAMPLED
    assert found["native"] is None


def test_where_kvm_spends_its_time_is_not_asked(monkeypatch):
    log = []
    monkeypatch.setattr(runner, "run_once", fake_run(log))
    found = runner.compare(workloads.get("tasks"), ["kvm"], 1)
    assert log == ["kvm"]
    assert "outside of this process" in found["engines"]["kvm"]["sampled"]["error"]


def test_a_sampled_run_that_fails_takes_nothing_from_the_others(monkeypatch):
    monkeypatch.setattr(runner, "run_once", fake_run([], fails=["bt, sampled"]))
    found = runner.compare(workloads.get("tasks"), ["bt"], 1)
    assert found["engines"]["bt"]["sampled"] == {"error": "it will not"}
    assert rows(table.render(found))["start of bt to its end"] == ["1.000"]


def test_an_engine_that_cannot_is_asked_once(monkeypatch):
    log = []
    monkeypatch.setattr(runner, "run_once", fake_run(log, fails=["trap"]))
    found = runner.compare(workloads.get("boot"), ["trap", "bt", "unborn"], 1)
    assert log == ["trap", "bt", "bt", "bt, sampled"]
    assert found["engines"]["trap"] == {"error": "it will not"}
    assert found["engines"]["unborn"] == {"error": "not available yet"}


def test_throughput_is_told_from_the_rest_by_an_idle_run(monkeypatch):
    def run(workload, engine, *, idle=False, sample=False):
        exits = {"control": {"OUT": 100 if idle else 2100, "CLI": 7}, "memory": {"mmio": 0}}
        stats = {"exits": exits, "hypercalls": {}, "translator": TRANSLATOR, "tsc_hz": 10**9,
                 "sampled": SAMPLED}
        return runner.Run(1.0, 0.5, stats, workloads.Reading(guest_s=None if idle else 2.0))

    monkeypatch.setattr(runner, "run_once", run)
    net = workloads.get("net")
    found = runner.compare(dataclasses.replace(net, megabytes=200.0), ["bt"], 3)
    assert found["engines"]["bt"]["mb_per_s"] == 100.0
    assert found["engines"]["bt"]["exits_per_mb"] == {"OUT": 10.0, "CLI": 0.0, "mmio": 0.0}
    text = rows(table.render(found).partition("throughput")[2])
    assert text["MB/s, guest's clock"] == ["100.0"] and text["exits a MB"] == ["10.0"]


def test_two_machines_need_a_cable_that_an_engine_may_not_have():
    with pytest.raises(WorkloadFailed, match="needs a machine with PCI"):
        runner.run_once(workloads.get("net"), "pv")


# Table and chart ----------------------------------------------------------------------------------


def test_table():
    found = rows(table.render(NANO))
    assert found["nano"] == ["native", "trap", "bt", "pv"]
    assert found["syscall"] == ["42.0", "126.0 (3.0x)", "63.0 (1.5x)"]
    assert found["ptemod"] == ["1.0", "0.5 (0.50x)", "0.5 (0.50x)"]
    assert found["start of bt to its end"] == ["1.500", "1.500"]
    assert found["processor time of that"] == ["1.250", "1.250"]
    assert found["IRET"] == ["70 000", "70 000"]
    assert found["iret"] == ["-", "9"]
    assert rows(table.render(NANO).partition("hypercalls")[2])["all"] == ["-", "10"]
    assert found["instructions scanned"] == ["1 234 567"] * 2
    assert found["seconds"] == ["0.250 (10%)"] * 2
    reason = " ".join(line.split("cannot")[-1].strip()
                      for line in table.render(NANO).splitlines()[5:9])
    assert "the guest died: an endless fault loop at address 0x1000" in reason


def test_table_of_nothing_but_reasons():
    text = table.render(results({"trap": {"error": "no"}, "pv": {"error": "not available yet"}}))
    assert rows(text)["cannot"] == ["no", "not available yet"]


def test_table_says_where_the_time_went():
    found = rows(table.render(results({
        "bt": engine({}), "trap": {"error": "no"}, "kvm": engine({}, sampled={"error": "no"}),
        "pv": engine({}, sampled=SAMPLED | {"seconds": dict.fromkeys(SAMPLED["seconds"], 0.0)})})))
    assert found["time in the VMM"] == ["0.250 (25%)", "-", "0.000 (0%)"]
    assert found["compiled"] == ["0.200 (20%)", "-", "0.000 (0%)"]
    assert found["Python"] == ["0.050 (5%)", "-", "0.000 (0%)"]
    assert found["the CPU's, in Unicorn"] == ["0.250 (25%)", "-", "0.000 (0%)"]
    assert found["guest's code"] == ["0.500 (50%)", "-", "0.000 (0%)"]
    assert "elsewhere" not in found
    lost = SAMPLED | {"seconds": SAMPLED["seconds"] | {"elsewhere": 1.0}}
    found = rows(table.render(results({"bt": engine({}, sampled=lost)})))
    assert found["elsewhere"] == ["1.000 (50%)"] and found["Python"] == ["0.050 (2%)"]


def test_one_run_is_really_sampled():
    stats = runner.run_once(workloads.get("in", 8), "bt", sample=True).stats
    assert set(stats["sampled"]["seconds"]) == set(SAMPLED["seconds"])
    assert "sampled" not in runner.run_once(workloads.get("in", 8), "bt").stats


def test_table_says_seconds_by_the_guests_clock():
    text = table.render(results({"bt": engine({}, guest=0.125)}, workload="gzip"))
    assert rows(text)["workload, guest's clock"] == ["0.125"]
    assert "ns an operation" not in text


def bars(svg):
    """The titles of the bars."""
    root = ET.fromstring(svg)
    return [e.text for e in root.iter("{http://www.w3.org/2000/svg}title")]


def heights(svg):
    root = ET.fromstring(svg)
    return [float(e.get("height")) for e in root.iter("{http://www.w3.org/2000/svg}rect")
            if len(e)]


def test_chart_of_nano():
    svg = chart.render(NANO)
    assert bars(svg) == ["syscall, native: 42", "syscall, bt: 126", "syscall, pv: 63",
                         "ptemod, native: 1", "ptemod, bt: 0.5", "ptemod, pv: 0.5"]
    native_syscall, bt_syscall, pv_syscall, *_ = heights(svg)
    assert native_syscall < pv_syscall < bt_syscall


def test_chart_of_seconds_starts_at_zero():
    both = results({"bt": engine({}, wall=2.0), "pv": engine({}, wall=1.0)}, workload="boot")
    two, one = heights(chart.render(both))[:2]
    assert two == pytest.approx(2 * one, abs=0.2)


def test_chart_of_seconds_has_those_in_the_vmm():
    svg = chart.render(results({"bt": engine({}), "kvm": engine({}, sampled={"error": "no"})},
                               workload="boot"))
    assert bars(svg)[2:] == ["time in the VMM, sampled, bt: 0.25"]


@pytest.mark.parametrize("engines", [{}, {"bt": {"error": "no"}}])
def test_chart_of_nothing_is_a_chart(engines):
    assert bars(chart.render(results(engines))) == []


@pytest.mark.parametrize("value", [0.001, 1.0, 9.99, 10.0, 123456.0])
def test_chart_holds_any_value(value):
    assert all(0 <= height <= 420 for height in heights(
        chart.render(results({"bt": engine({"in": value})}, {"ns": {"in": 1.0}}))))
    assert all(0 <= height <= 420 for height in heights(
        chart.render(results({"bt": engine({}, wall=value)}))))


# The guest ----------------------------------------------------------------------------------------


def run_nano(name, cmdline, **options):
    from bt.machine.machine import Machine

    output = bytearray()
    machine = Machine(ram_bytes=32 << 20, console=output.extend, **options)
    machine.load(guests.image(name), cmdline=cmdline)
    outcome = machine.run(timeout=60)
    return output.decode(), outcome, machine.stats


@pytest.mark.parametrize("name, engine", [("nano", "bt"), ("nano", "trap"), ("nano-pv", "pv")])
def test_nano_runs_all_seven_under_every_engine(name, engine):
    output, outcome, _ = run_nano(name, "800", engine=engine)
    assert (outcome.kind, outcome.status) == ("powered-off", 0)
    lines = [line.split() for line in output.splitlines()]
    assert [line[0] for line in lines[::32]] == list(workloads.NANO)
    assert all(len(line) == 3 and line[1] == "800" and int(line[2]) > 0 for line in lines)
    assert len(lines) == 32 * 7


def test_nano_repeats_itself():
    first, second = (run_nano("nano", "80", engine="bt", deterministic=True)[0] for _ in range(2))
    assert first == second


@pytest.mark.parametrize("cmdline, chosen", [
    ("in", ["in"]), ("/boot/nano.elf  ptemod 80 syscall", ["syscall", "ptemod"]),
    ("inn 800x callre", list(workloads.NANO)), ("pteflush", ["pteflush"]), ("7 in", ["in"]),
])
def test_nano_chooses_by_its_command_line(cmdline, chosen):
    output, _, _ = run_nano("nano", cmdline, engine="bt")
    assert list(dict.fromkeys(line.split()[0] for line in output.splitlines())) == chosen


def test_nano_does_what_it_says():
    """The exits that an operation makes, as often as it is done (32 passes)."""
    for name, unit, reason in (("in", "control", "IN"), ("cr8wr", "control", "MOV_TO_CR"),
                               ("syscall", "control", "SYSCALL"),
                               ("divzero", "control", "exception #DE"),
                               ("pgfault", "memory", "page fault injected"),
                               ("pteflush", "memory", "page invalidation")):
        _, _, stats = run_nano("nano", f"{name} 800", engine="bt")
        assert 25600 <= stats.exits[unit][reason] < 25600 + 6000, name
    _, _, stats = run_nano("nano-pv", "cr8wr 800", engine="pv")
    assert stats.hypercalls["write_cr"] >= 25600


def test_nano_in_ring_0_on_plain_unicorn():
    output = native.run(guests.image("nano"), "800")
    assert set(workloads.read_nano(output, workloads.NANO)) == set(workloads.NANO)
    assert {line.split()[1] for line in output.splitlines()} == {"800"}
    assert native.ns_per_tick() > 0
