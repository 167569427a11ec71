# SPDX-License-Identifier: GPL-2.0-or-later
"""Every command in the documents is typed into a shell, and what it prints compared.

A ``console`` block has commands behind ``$ `` and what they print, output and errors together:
``...`` stands for anything, alone on a line for any lines; runs of spaces count as one. An ``sh``
block has commands alone; one in which a command stays in the background (``&``) is one script, at
the end of which that is ended. ``# status N`` behind a command says how it ends, if not with 0. A
block behind ``<!-- not run: why -->`` is left out: for what a test machine cannot have. Commands of
one page share a folder, and find there the files that documents name.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).resolve().parents[2]
PAGES = sorted([ROOT / "README.md", *ROOT.glob("docs/*.md")])
_BLOCK = re.compile(r"(<!-- not run: [^>]+ -->\n+)?^```(console|sh)\n(.*?)^```$",
                    re.MULTILINE | re.DOTALL)
_STATUS = re.compile(r"#.*\bstatus (\d+)")
_PATIENCE = 300.0


class Command(NamedTuple):
    """What to type, the lines that follow (None: not said), and the exit status."""

    line: str
    output: list[str] | None
    status: int


def commands(text: str) -> Iterator[Command]:
    for skipped, kind, body in _BLOCK.findall(text):
        if skipped:
            continue
        if kind == "sh" and re.search(r" &(\s|$)", body, re.MULTILINE):
            yield Command(f"trap 'kill $(jobs -p)' EXIT; set -e\n{body}", None, 0)
            continue
        if kind == "sh":
            for line in re.sub(r"\\\n", " ", body).splitlines():
                if line.strip() and not line.startswith(("#", "make ")):
                    yield Command(line, None, _status(line))
            continue
        found: list[tuple[str, list[str]]] = []
        for line in body.splitlines():
            if line.startswith("$ "):
                found.append((line[2:], []))
            elif found:
                found[-1][1].append(line)
        for typed, output in found:
            yield Command(typed, output, _status(typed))


def _status(line: str) -> int:
    match = _STATUS.search(line)
    return int(match[1]) if match else 0


def pattern(lines: list[str]) -> re.Pattern[str]:
    """What the output must look like as a whole."""
    parts = []
    for line in lines:
        if line.strip() == "...":
            parts.append(r"(?:[^\n]*\n)*?")
        else:
            pieces = (re.escape(piece) for piece in _squeeze(line).split("..."))
            parts.append(r"[^\n]*?".join(pieces).replace(r"\ ", " ?") + " ?\n")
    return re.compile("".join(parts))


def _squeeze(line: str) -> str:
    return re.sub(r"[ \t]+", " ", line).rstrip()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with the files that documents name."""
    import guests
    from guests.linux import fetch, initramfs

    shutil.copy(guests.image("tasks"), tmp_path / "kernel.elf")
    (tmp_path / "bzImage").symlink_to(fetch.kernel(fetch.KERNEL_PACKAGE))
    (tmp_path / "initrd.img").write_bytes(initramfs.initramfs(fetch.busybox(), []))
    (tmp_path / "tools").symlink_to(ROOT / "tools")
    (tmp_path / "examples").symlink_to(ROOT / "examples")
    (tmp_path / "docs").mkdir()
    for name in ("data.img", "more.img"):
        with open(tmp_path / name, "wb") as image:
            image.truncate(8 << 20)
    return tmp_path


def _name(path: Path) -> str:
    return str(path.relative_to(ROOT))


@pytest.mark.slow
@pytest.mark.parametrize("page", [p for p in PAGES if any(commands(p.read_text("utf-8")))],
                         ids=_name)
def test_commands_do_what_the_page_says(page: Path, folder: Path) -> None:
    environment = os.environ | {
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}", "COLUMNS": "200",
        "PYTHONPATH": str(ROOT)}
    for command in commands(page.read_text(encoding="utf-8")):
        # A shell in the guest is left as a person would leave it.
        run = subprocess.run(["bash", "-o", "pipefail", "-c", command.line], cwd=folder,
                             env=environment, input="exit\n", text=True, errors="replace",
                             stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                             timeout=_PATIENCE, check=False)
        said = "".join(_squeeze(line) + "\n" for line in run.stdout.splitlines())
        # `command | head` ends the command early: 141.
        accepted = {command.status} | ({141} if "| head" in command.line else set())
        assert run.returncode in accepted, f"{command.line}: status {run.returncode}\n{said}"
        if command.output is not None:
            assert pattern(command.output).fullmatch(said), f"{command.line} printed\n{said}"


def test_the_matcher() -> None:
    assert pattern(["a ... c", "...", "end"]).fullmatch("a b c\nmore\nmore\nend\n")
    assert pattern(["...", "x  y"]).fullmatch("x y\n")
    assert not pattern(["a"]).fullmatch("a\nb\n")
    assert not pattern(["... b"]).fullmatch("a c\n")


def test_the_finder() -> None:
    text = ("```console\n$ one # status 3\nout\n$ two\n```\n<!-- not run: it flies -->\n```sh\nno\n"
            "```\n```sh\nmake x\nyes \\\n  more\n```\n")
    assert list(commands(text)) == [Command("one # status 3", ["out"], 3), Command("two", [], 0),
                                    Command("yes    more", None, 0)]
    script, = commands("```sh\nserve &  # for a while\nask\n```\n")
    assert script.line.endswith("EXIT; set -e\nserve &  # for a while\nask\n")
