# SPDX-License-Identifier: GPL-2.0-or-later
from __future__ import annotations

import json
import sys

import pytest
from fake_machine import Outcome

from bt.cli.main import main


@pytest.fixture
def flat(tmp_path):
    path = tmp_path / "guest.bin"
    path.write_bytes(b"\xf4" * 16)
    return str(path)


def returns(machine, outcome, console=b""):
    def guest(running):
        running.console(console)
        return outcome

    machine.guest = staticmethod(guest)


@pytest.mark.parametrize(
    ("outcome", "status"),
    [
        (Outcome("powered-off", 0), 0),
        (Outcome("powered-off", 7), 7),
        (Outcome("halted", 0), 0),
        (Outcome("reset", 0), 0),
        (Outcome("died", 0, "triple fault\nrip=0"), 3),
        (Outcome("timeout", 0), 124),
    ],
)
def test_exit_status_says_how_the_run_ended(machine, flat, outcome, status):
    returns(machine, outcome)
    assert main(["run", flat, "--flat", "0x7c00"]) == status


def test_console_goes_to_stdout_and_the_report_to_stderr(machine, flat, capfd):
    returns(machine, Outcome("died", 0, "triple fault\nrip=0"), b"hello\r\nhalf a line")
    assert main(["run", flat, "--flat", "0x7c00"]) == 3
    out, err = capfd.readouterr()
    assert out == "hello\r\nhalf a line"
    assert err == "\ntriple fault\nrip=0\n", "the report starts on a line of its own"


def test_an_engine_says_what_not_to_believe(machine, flat, capfd):
    assert main(["run", flat, "--engine", "trap"]) == 0
    assert capfd.readouterr().err.startswith("bt: engine trap shows the holes")
    assert main(["run", flat, "--engine", "bt"]) == 0
    assert capfd.readouterr().err == ""


def test_options_reach_the_machine(machine, flat):
    arguments = ["--mem", "96M", "--engine", "trap", "--deterministic", "--trace", "--timeout", "5",
                 "--machine", "legacy"]
    assert main(["run", flat, "--flat", "0x8000", "--bits", "32", *arguments]) == 0
    made = machine.made[0]
    assert (made.engine, made.ram_bytes, made.deterministic) == ("trap", 96 << 20, True)
    assert made.machine == "legacy"
    assert made.trace is sys.stderr
    assert made.timeout == 5.0
    assert made.path.name == "guest.bin"
    assert made.how == {"cmdline": "", "initrd": None, "kind": "flat", "base": 0x8000, "bits": 32}


def test_linux_shell(machine, linux_files):
    assert main(["run", "linux", "--append", "nokaslr"]) == 0
    made = machine.made[0]
    assert made.path == linux_files[0]
    assert made.how["cmdline"] == "console=ttyS0 panic=-1 nokaslr"
    assert b"ring1/cmd\0" not in made.how["initrd"]
    assert made.ram_bytes == 256 << 20


def test_linux_command(machine, linux_files, capfd):
    def guest(running):
        running.console(b"kernel message\r\n")
        running.channels[3](b"an error\n")
        running.channels[2](b"out \xff\n")
        return Outcome(status=7)

    machine.guest = staticmethod(guest)
    assert main(["run", "linux", "--", "uname", "-a"]) == 7
    made = machine.made[0]
    assert made.how["cmdline"] == "console=ttyS0 panic=-1 quiet"
    assert b"exec 'uname' '-a'\n" in made.how["initrd"]
    # pytest's standard input is /dev/null: nothing to pass on.
    assert b"ring1/stdin\0" not in made.how["initrd"]
    out, err = capfd.readouterr()
    assert (out, err) == ("out \ufffd\n", "an error\n")  # capfd decodes with "replace"


def test_verbose_shows_the_console_beside_a_command(machine, linux_files, capfd):
    returns(machine, Outcome(), b"kernel message\r\n")
    assert main(["run", "linux", "-v", "--", "true"]) == 0
    assert "quiet" not in machine.made[0].how["cmdline"]
    assert capfd.readouterr().err.endswith("kernel message\r\n")


def test_death_shows_the_console_that_was_kept_back(machine, linux_files, capfd):
    returns(machine, Outcome("died", 0, "the report"), b"x" * 200_000 + b"\r\nKernel panic\r\n")
    assert main(["run", "linux", "--", "true"]) == 3
    out, err = capfd.readouterr()
    assert out == ""
    assert err.endswith("x\nKernel panic\nthe report\n")
    assert len(err) < 70_000


def test_own_kernel_and_initrd_fetch_nothing(machine, cache, tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", "")
    (tmp_path / "k").write_bytes(b"k")
    (tmp_path / "i").write_bytes(b"i" * 512)
    files = ["--kernel", str(tmp_path / "k"), "--initrd", str(tmp_path / "i")]
    assert main(["run", "linux", *files]) == 0
    assert machine.made[0].how["initrd"] == tmp_path / "i"
    assert machine.made[0].channels == {}
    assert main(["run", "linux", *files, "--", "true"]) == 0
    assert machine.made[1].how["initrd"].startswith(b"i" * 512 + b"070701")


def test_linux_files_get_the_default_command_line(machine, tmp_path):
    image = bytearray(4096)
    image[0x1FE:0x206] = b"\x55\xaa\xeb\x00HdrS"
    (tmp_path / "bzImage").write_bytes(image)
    assert main(["run", str(tmp_path / "bzImage"), "--append", "debug"]) == 0
    assert machine.made[0].how["cmdline"] == "console=ttyS0 panic=-1 debug"


def test_stats(machine, flat, tmp_path, capfd):
    target = tmp_path / "stats.json"
    assert main(["run", flat, "--stats", str(target)]) == 0
    assert json.loads(target.read_text()) == {"exits": 42}
    assert main(["run", flat, "--stats", "-"]) == 0
    assert json.loads(capfd.readouterr().out) == {"exits": 42}


def test_stats_with_samples(machine, flat, capfd):
    assert main(["run", flat, "--stats", "-", "--sample"]) == 0
    stats = json.loads(capfd.readouterr().out)
    assert stats["exits"] == 42
    assert set(stats["sampled"]) == {"samples", "interval_s", "seconds", "vmm_s"}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "required"),
        (["nonsense"], "nonsense"),
        (["run"], "GUEST"),
        (["run", "/no/such/file"], "no guest and no file"),
        (["run", "linux", "--mem", "lots"], "not a size"),
        (["run", "linux", "--timeout", "0"], "seconds"),
        (["run", "linux", "--nonsense"], "--nonsense"),
        (["run", "linux", "--engine", "warp"], "no engine 'warp': one of bt, trap"),
        (["run", "linux", "--flat", "0"], "--flat and --bits"),
        (["run", "linux", "--package", "../x"], "not a package name"),
        (["run", "linux", "--package", "x1", "--kernel", "f"], "exclude"),
        (["run", "linux", "--stats", "/no/such/folder/x"], "cannot write"),
        (["run", "hello", "--sample"], "goes with --stats"),
        (["run", "hello", "--stats", "-", "--sample", "--engine", "kvm"], "cannot be sampled"),
        (["run", "linux", "--initrd", "/no/such", "--", "true"], "cannot read /no/such"),
        (["run", "linux", "--"], "no command after --"),
        (["run", "hello", "--", "true"], "needs the guest linux"),
        (["run", "hello", "--package", "x1"], "go with the guest linux"),
        (["run", "hello", "--flat", "0"], "--flat and --bits"),
        (["run", __file__, "--bits", "32"], "goes with --flat"),
        (["guests", "--", "x"], "no command"),
    ],
)
def test_bad_input_is_one_line_and_exit_2(machine, linux_files, capfd, arguments, message):
    assert main(arguments) == 2
    out, err = capfd.readouterr()
    assert out == ""
    assert err.startswith("bt: ") and err.count("\n") == 1 and message in err
    assert machine.made == []


def test_help_and_version(capfd):
    assert main(["run", "--help"]) == 0
    assert main(["--version"]) == 0
    out, _ = capfd.readouterr()
    assert "Ctrl-A x" in out
    assert "\nbt " in out


def test_starting_up_imports_nothing_large():
    """Process start is in every measured boot: the slow ones to import come in when needed."""
    import subprocess

    script = "import sys, bt.cli.main as m; m.build_parser('run'); print(*sys.modules)"
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    loaded = set(result.stdout.split())
    large = {"typer", "click", "rich", "unicorn", "capstone", "keystone", "lief", "json", "asyncio"}
    assert "bt.cli.run" in loaded
    assert not loaded & large


def test_boot_protocol_of_the_users_choice(machine, flat, linux_files, capsys):
    assert main(["run", "linux", "--boot", "pvh"]) == 0
    assert machine.made[0].how["kind"] == "pvh"
    assert main(["run", flat, "--flat", "0x8000", "--boot", "pvh"]) == 2
    assert "exclude each other" in capsys.readouterr().err
