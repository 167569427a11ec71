# SPDX-License-Identifier: GPL-2.0-or-later
"""`bt scan` as it is typed: tables, lists, JSON, exit statuses."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from binaries import KERNEL, KERNEL_INSTRUCTIONS, KERNEL_SITES, gcc, kernel

from bt.cli.main import main
from bt.scan import pool
from translator.sensitive import TABLE


@pytest.fixture
def bt(capfd):
    """``bt(*arguments)`` in this process: (status, output, errors)."""

    def run(*arguments: object) -> tuple[int, str, str]:
        status = main(["scan", *map(str, arguments)])
        out, err = capfd.readouterr()
        return status, out, err

    return run


@pytest.fixture(autouse=True)
def no_dask(monkeypatch):
    """Its start takes seconds; test_scan_pool.py is about it."""
    monkeypatch.setattr(pool, "has_cluster", lambda: False)


def test_one_file(bt, tmp_path) -> None:
    status, out, err = bt(kernel(tmp_path))
    assert (status, err) == (0, "")
    assert f"{KERNEL_INSTRUCTIONS} instructions" in out and "12 of the sensitive table" in out
    assert "64-bit ELF kernel; names from ELF" in out
    rows = {line.split()[0]: line.split() for line in out.splitlines() if line.strip()}
    assert rows["CLI"][1:3] == ["yes", "1"] and rows["PUSHF"][1:3] == ["hole", "1"]
    assert rows["privileged"][1] == "9" and rows["sensitive"][1] == "2"
    assert rows["setup"] == ["setup", "3"]
    assert rows[".init.text"][1] == "64"
    assert "─" not in out and "\x1b" not in out     # no rules or colours where it is piped


def test_list(bt, tmp_path) -> None:
    status, out, _ = bt(kernel(tmp_path), "--list")
    lines = out.splitlines()
    assert status == 0 and len(lines) == len(KERNEL_SITES)
    for line, (name, section, symbol, offset) in zip(lines, KERNEL_SITES, strict=True):
        words = line.split()
        assert words[1] == section and words[3] == name
        assert words[2] == (f"{symbol}+{offset:#x}" if offset else symbol)
    assert lines[0].startswith("00100000 ") and lines[0].endswith(" cli")
    assert "mov rax, cr3" in lines[2]
    assert len(bt(tmp_path / "a.out", "--list", "--symbol", "sec*", "--class", "wanted")[1]
               .splitlines()) == 1


def test_json(bt, tmp_path) -> None:
    path = kernel(tmp_path)
    status, out, _ = bt(path, "--json", "--list")
    data = json.loads(out)
    assert status == 0 and data["schema"] == "ring1-scan/1"
    file, = data["files"]
    assert file["path"] == str(path) and file["total"] == 12
    assert [s["instruction"] for s in file["sites"]] == [row[0] for row in KERNEL_SITES]
    assert sum(row["count"] for row in file["counts"]) == 12
    assert data["totals"]["sites"] == 12 and data["totals"]["holes"] == 2
    assert data["totals"]["by_class"] == {"sensitive": 2, "privileged": 9, "wanted": 1}
    assert file["by_symbol"] == {"_start": 7, "setup": 3, "second": 2}
    assert json.loads(bt(path, "--json")[1])["files"][0]["sites"] == []


def test_the_schema_in_the_document(bt, tmp_path) -> None:
    """docs/scan.md names every key, and no other."""
    import re
    path = kernel(tmp_path)
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad" / "x").write_bytes(b"\x7fELF")
    (tmp_path / "bad" / "y").write_text("text")
    data = json.loads(bt(path, tmp_path / "bad", "--json", "--list")[1])

    def keys(value) -> set[str]:
        if isinstance(value, list):
            return set().union(*map(keys, value)) if value else set()
        if not isinstance(value, dict):
            return set()
        named = {"by_symbol", "by_class"}
        return set(value).union(*(keys(v) for k, v in value.items() if k not in named))

    text = (Path(__file__).parents[2] / "docs" / "scan.md").read_text()
    schema = text[text.index("## JSON"):]
    schema = schema[:schema.find("\n## ", 5)] if "\n## " in schema[5:] else schema
    documented = {word for row in schema.splitlines() if row.startswith("| `")
                  for word in re.findall(r"`([a-z_]+)`", row)}
    assert keys(data) == documented


def test_kernels_side_by_side(bt, tmp_path) -> None:
    (tmp_path / "one").mkdir()
    (tmp_path / "two").mkdir()
    first = kernel(tmp_path / "one").rename(tmp_path / "first")
    second = gcc(tmp_path / "two", KERNEL.replace("hlt", "nop"), "-nostdlib", "-static"
                 ).rename(tmp_path / "second")
    status, out, _ = bt(first, second)
    rows = {line.split()[0]: line.split() for line in out.splitlines() if line.strip()}
    assert status == 0 and rows["HLT"] == ["HLT", "1"]
    assert rows["CLI"] == ["CLI", "1", "1"]
    assert rows["instructions"] == ["instructions", "16", "16"]


def test_a_folder(bt, tmp_path) -> None:
    """What cannot be read is listed, what is no code is passed over, the rest goes on."""
    plain = gcc(tmp_path, KERNEL.replace("[gdt]", "[rip + gdt]"), "-c")
    folder = tmp_path / "modules"
    (folder / "deep").mkdir(parents=True)
    for n in range(8):
        (folder / "deep" / f"m{n}.ko").write_bytes(plain.read_bytes())
    (folder / "modules.dep").write_text("nothing")
    (folder / "cut.ko").write_bytes(plain.read_bytes()[:300])
    status, out, err = bt(folder, "--jobs", "1", "--top", "5")
    assert status == 0
    assert err == f"bt: {folder}/cut.ko: cut short: its section headers are not all there\n"
    assert "3 more files" in out and "1 other files hold no code" in out
    total = next(line.split() for line in out.splitlines() if line.startswith("  all "))
    assert total[-1] == "96"


@pytest.mark.parametrize(("make", "words"), [
    (lambda p: p.write_bytes(b""), "is empty"),
    (lambda p: p.write_bytes(b"\xff\xd8\xff\xe0"), "is a JPEG picture"),
    (lambda p: p.write_bytes(Path("/bin/true").read_bytes()[:2000]), "cut short"),
    (lambda p: None, "cannot open: No such file"),
])
def test_bad_files_are_one_line_and_status_2(bt, tmp_path, make, words) -> None:
    path = tmp_path / "x"
    make(path)
    status, out, err = bt(path)
    assert (status, out) == (2, "") and words in err
    assert err.startswith("bt: ") and err.count("\n") == 1


def test_one_bad_file_of_two(bt, tmp_path) -> None:
    status, out, err = bt(kernel(tmp_path), tmp_path / "nothing", "--jobs", "1")
    assert status == 2 and "cannot open" in err and "CLI" in out


@pytest.mark.parametrize("arguments", [
    ("--class", "odd"), ("--instruction", "NOSUCH"), ("--base", "0x100"), ("--arch", "48"),
    ("--top", "-1"), ("--system-map", "/nonexistent")])
def test_bad_options(bt, arguments) -> None:
    status, out, err = bt("/bin/true", *arguments)
    assert (status, out, err.count("\n")) == (2, "", 1)


def test_a_guest_by_name(bt) -> None:
    status, out, _ = bt("hello32", "--list")
    assert status == 0 and "CLI" in out
    assert main(["scan", "no-such-guest"]) == 2


def test_tables_fit_a_terminal_of_80_columns(tmp_path) -> None:
    import io
    import os

    from bt.scan.tables import by_instruction, by_section
    from bt.scan.work import Options, scan_file
    source = KERNEL.replace("hlt", "mov eax, cs")       # the longest name there is
    result = scan_file(gcc(tmp_path, source, "-nostdlib", "-static"), Options())
    os.environ["COLUMNS"] = "80"
    try:
        for table in (by_instruction([result]), by_section(result)):
            out = io.StringIO()
            table.write(out, rich=True)
            lines = out.getvalue().splitlines()
            assert max(map(len, lines)) <= 80
            for row in table.rows:
                if row is not None:         # no cell was folded or cut
                    assert any(line.split() == [w for cell in row for w in cell.split()]
                               for line in lines), row
    finally:
        del os.environ["COLUMNS"]


def test_an_empty_folder(bt, tmp_path) -> None:
    assert bt(tmp_path)[0] == 2


def test_single_files_need_no_cluster_and_no_pool() -> None:
    """Neither Dask nor rich nor Unicorn is imported for one file whose output is piped."""
    script = ("import sys; from bt.cli.main import main; main(['scan', '/bin/true'])\n"
              "bad = {'distributed', 'dask', 'unicorn', 'rich', 'lief'} & set(sys.modules)\n"
              "sys.exit(str(bad) if bad else 0)")
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_every_row_can_be_asked_for(bt, tmp_path) -> None:
    path = kernel(tmp_path)
    arguments = [word for row in TABLE for word in ("--instruction", row.name.lower())]
    assert bt(path, "--list", *arguments)[1].count("\n") == 12
