# SPDX-License-Identifier: GPL-2.0-or-later
"""``bt engines``: every engine, and why one cannot be used."""

from __future__ import annotations

import json

import pytest

from bt.cli import main as cli
from bt.engines import ENGINES
from bt.kvm import device, software


@pytest.fixture
def no_kvm(monkeypatch: pytest.MonkeyPatch, tmp_path) -> str:
    path = str(tmp_path / "kvm")
    monkeypatch.setattr(device, "DEVICE", path)
    return path


def test_the_list(no_kvm: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["engines"]) == 0
    out = capsys.readouterr().out
    assert [line.split()[0] for line in out.splitlines() if line[0] != " "] == list(ENGINES)
    assert f"not here: there is no {no_kvm}" in " ".join(out.split())
    assert max(map(len, out.splitlines())) <= 100


def test_for_programs(no_kvm: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["engines", "--json"]) == 0
    rows = {row["name"]: row for row in json.loads(capsys.readouterr().out)}
    assert list(rows) == list(ENGINES)
    assert rows["bt"]["usable"] and rows["bt"]["why"] is None
    assert not rows["kvm"]["usable"] and rows["kvm"]["why"].startswith("there is no ")
    assert "POPF loses IF" in rows["trap"]["remark"]


def test_a_usable_kvm_has_its_remark(monkeypatch, capsys) -> None:
    monkeypatch.setattr(type(ENGINES["kvm"].open()), "unusable", lambda self: None)
    monkeypatch.setattr(software, "software", lambda: "kvm_pvm")
    assert cli.main(["engines"]) == 0
    assert "a software one (kvm_pvm)" in " ".join(capsys.readouterr().out.split())


def test_it_takes_no_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["engines", "--", "true"]) == 2
    assert capsys.readouterr().err.count("\n") == 1
