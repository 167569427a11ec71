# SPDX-License-Identifier: GPL-2.0-or-later
"""Each program in examples/, run as a reader would, says what is true."""

from __future__ import annotations

import re
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[2] / "examples"


def run(name: str, *arguments: str) -> str:
    done = subprocess.run([sys.executable, EXAMPLES / name, *arguments], capture_output=True,
                          text=True, timeout=200)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_every_example_is_tested() -> None:
    text = Path(__file__).read_text()
    assert [path.name for path in EXAMPLES.glob("*.py") if f'"{path.name}"' not in text] == []


def test_ports_of_hello() -> None:
    text = run("log_ports.py")
    sent = re.findall(r"port 0x03f8 <- 0x(\w\w)$", text, re.M)
    assert b"Hello from ring 0" in bytes.fromhex("".join(sent))
    assert "port 0x0501 <- 0x00" in text


@pytest.mark.slow
def test_system_calls_by_name() -> None:
    text = run("count_syscalls.py", "echo", "hello")
    assert text.startswith("hello\n")
    made = {name: int(times) for times, name in re.findall(r"^ +(\d+) (\w+)$", text, re.M)}
    assert made["execve"] >= 1 and made["mount"] >= 1 and made["write"] >= 1
    assert not [name for name in made if name.startswith("number")]


@pytest.mark.slow
def test_a_hidden_feature() -> None:
    assert run("hide_cpuid_feature.py").endswith("sse4_1: True  sse4_2: False\n")


@pytest.mark.slow
def test_arguments_of_a_kernel_function() -> None:
    text = run("catch_arguments.py", "cat", "/proc/version")
    assert "open /proc/version flags 0o100000" in text
    assert "Linux version" in text


@pytest.mark.slow
def test_the_picture_of_page_faults(tmp_path: Path) -> None:
    picture = tmp_path / "faults.svg"
    text = run("fault_picture.py", str(picture), "true")
    count = int(re.match(r"(\d+) page faults of \d+ pages", text)[1])
    svg = ElementTree.parse(picture).getroot()
    dots = [rect for rect in svg.iter("{http://www.w3.org/2000/svg}rect") if rect.get("x")]
    assert len(dots) == count > 100
    assert {rect.get("fill") for rect in dots} >= {"#2563eb", "#dc2626"}
