# SPDX-License-Identifier: GPL-2.0-or-later
"""The documents against the code: generated pages, quoted commands, links, names of files."""

from __future__ import annotations

import importlib.util
import re
import shlex
from pathlib import Path
from types import ModuleType

import pytest

from bt.cli import main as cli

ROOT = Path(__file__).resolve().parents[2]
DOCUMENTS = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/*.md")])
IDS = [str(path.relative_to(ROOT)) for path in DOCUMENTS]

_FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_INLINE = re.compile(r"`([^`\n]+(?:\n[^`\n]+)?)`")
_LINK = re.compile(r"\[[^\]]+\]\(([^)\s]+)\)")
_HEADING = re.compile(r"^#+ +(.*)$", re.MULTILINE)
#: What a path of ours begins with, when it is written as code.
_TOP = ("bt/", "translator/", "guests/", "tests/", "tools/", "docs/", ".ci/")


def prose(text: str) -> str:
    """A document without its fenced blocks."""
    return _FENCE.sub("", text)


def inline_code(text: str) -> list[str]:
    """The code spans outside of fenced blocks, each on one line."""
    return [" ".join(span.split()) for span in _INLINE.findall(prose(text))]


def fenced_lines(text: str) -> list[str]:
    """What a reader would type: lines of sh blocks, and of console blocks those with a prompt."""
    lines = []
    for language, body in _FENCE.findall(text):
        for line in body.splitlines():
            if language == "console" and line.startswith("$ "):
                lines.append(line[2:])
            elif language == "sh":
                lines.append(line)
    return lines


def bt_commands(text: str) -> list[list[str]]:
    """The arguments of every ``bt`` command quoted, up to a pipe or a redirection."""
    found = []
    for line in [*fenced_lines(text), *inline_code(text)]:
        for part in re.split(r"\s\|\s", line):
            words = shlex.split(part, comments=True)
            if words[:1] == ["bt"] and len(words) > 1:
                ends = (i for i, word in enumerate(words) if re.match(r"\d?[<>]", word))
                found.append(words[1:next(ends, len(words))])
    return found


def anchors(text: str) -> set[str]:
    """The names that headings can be linked to by, as code forges make them."""
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")
            for heading in _HEADING.findall(prose(text))}


def generator() -> ModuleType:
    """docs/generate.py, which is in no package."""
    spec = importlib.util.spec_from_file_location("generate", ROOT / "docs" / "generate.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_documents_are_found():
    assert {"README.md", "ARCHITECTURE.md", "CONTRIBUTING.md", "CHANGELOG.md",
            "docs/quirks.md", "docs/vcpu-page.md", "docs/sensitive.md"} <= set(IDS)


def test_generated_documents_are_current():
    for name, write in generator().GENERATED.items():
        committed = (ROOT / "docs" / name).read_text(encoding="utf-8")
        assert committed == write(), f"docs/{name} is old: run python docs/generate.py"


@pytest.mark.parametrize("path", DOCUMENTS, ids=IDS)
def test_quoted_commands_parse(path):
    for arguments in bt_commands(path.read_text(encoding="utf-8")):
        ours, _ = cli.split_command(arguments)
        if ours[0].startswith("-"):
            continue  # bt's own options end the process
        assert ours[0] in cli.COMMANDS, arguments
        guest = ["GUEST"] if ours in (["run"], ["inspect"], ["scan"]) else []
        cli.build_parser(ours[0]).parse_args([*ours, *guest])


def test_readme_quotes_commands():
    """So that a change of style there does not silently leave nothing to check."""
    commands = bt_commands((ROOT / "README.md").read_text(encoding="utf-8"))
    for wanted in (["run", "linux", "--", "uname", "-a"], ["run", "hello"], ["guests"],
                   ["run", "sensitive", "--engine", "trap"], ["run", "linux", "--", "wc", "-l"]):
        assert wanted in commands, wanted


@pytest.mark.parametrize("path", DOCUMENTS, ids=IDS)
def test_links_resolve(path):
    text = path.read_text(encoding="utf-8")
    for link in _LINK.findall(prose(text)):
        if re.match(r"[a-z]+:", link):
            continue
        name, _, anchor = link.partition("#")
        target = path.parent / name if name else path
        assert target.exists(), link
        if anchor:
            assert anchor in anchors(target.read_text(encoding="utf-8")), link


@pytest.mark.parametrize("path", DOCUMENTS, ids=IDS)
def test_named_files_exist(path):
    for span in inline_code(path.read_text(encoding="utf-8")):
        if span.startswith(_TOP) and " " not in span:
            assert (ROOT / span).exists(), span


def test_make_targets_exist():
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    targets = re.findall(r"^([\w$()./-]+):", makefile, re.MULTILINE)
    targets = [target.replace("$(VENV)", ".venv") for target in targets]
    quoted = [line.split()[1] for path in DOCUMENTS
              for line in fenced_lines(path.read_text(encoding="utf-8"))
              if line.startswith("make ")]
    assert "linux" in quoted and "test" in quoted
    assert set(quoted) <= set(targets)


@pytest.mark.parametrize("path", DOCUMENTS, ids=IDS)
def test_every_option_named_is_one(path):
    """`--option` as code is an option of bt, or of a script in tools/."""
    known = {option for command in cli.COMMANDS
             for option in re.findall(r"--[a-z][a-z-]*", _help(command))}
    known |= {option for script in ROOT.glob("tools/*.py")
              for option in re.findall(r'"(--[a-z]+)"', script.read_text(encoding="utf-8"))}
    for span in inline_code(path.read_text(encoding="utf-8")):
        if re.match(r"--[a-z]", span):
            assert span.split()[0] in known, span


def _help(command: str) -> str:
    parser = cli.build_parser(command)
    for action in parser._actions:
        if isinstance(action.choices, dict):
            return action.choices[command].format_help()
    raise AssertionError(command)


def test_vcpu_page_fields_are_those_of_the_code():
    from translator import vcpupage

    text = (ROOT / "docs" / "vcpu-page.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| (0x[0-9a-f]+) \| `(\w+)` \|", text, re.MULTILINE)
    assert rows
    fields = {name: value for name, value in vars(vcpupage).items()
              if name.isupper() and name not in ("IF", "SIZE")}
    assert {name: int(offset, 16) for offset, name in rows} == fields
    assert f"{vcpupage.SIZE:#x} bytes are in use" in text


def test_dependencies_are_justified():
    import tomllib

    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    wanted = [*project["build-system"]["requires"], *project["project"]["dependencies"],
              *project["project"]["optional-dependencies"]["test"]]
    text = (ROOT / "ARCHITECTURE.md").read_text(encoding="utf-8").partition("## Dependencies")[2]
    for requirement in wanted:
        name = re.match(r"[\w-]+", requirement)
        assert name is not None and f"`{name[0]}`" in text, requirement


@pytest.mark.slow
def test_the_site_builds(tmp_path):
    """Without a warning; every page is reachable from the first one."""
    import subprocess
    import sys

    subprocess.run([sys.executable, "-m", "sphinx", "-q", "-W", "--keep-going", "-b", "html",
                    str(ROOT / "docs"), str(tmp_path)], check=True, timeout=300)
    for page in ROOT.glob("docs/*.md"):
        assert (tmp_path / f"{page.stem}.html").exists()
    assert "how-it-works.html" in (tmp_path / "index.html").read_text(encoding="utf-8")
