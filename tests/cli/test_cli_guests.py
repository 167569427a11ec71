# SPDX-License-Identifier: GPL-2.0-or-later
from __future__ import annotations

import json

import pytest

import guests
from bt.cli.main import main


@pytest.fixture
def built(monkeypatch, tmp_path):
    """The sample guests, without assembling them."""
    monkeypatch.setattr(guests, "image", lambda name: tmp_path / f"{name}.elf")
    return tmp_path


def test_json(built, linux_files, capfd):
    assert main(["guests", "--json"]) == 0
    rows = {row["name"]: row for row in json.loads(capfd.readouterr().out)}
    assert {"hello", "hello32", "sensitive", "sensitive32", "tasks", "linux"} <= set(rows)
    assert rows["hello"]["image"] == str(built / "hello.elf")
    assert rows["linux"]["image"] == str(linux_files[0])
    for row in rows.values():
        assert set(row) == {"name", "shows", "image", "engines"}
        assert row["shows"] and row["engines"]


def test_a_kernel_that_is_not_there_yet_is_not_fetched(built, cache, capfd, monkeypatch):
    monkeypatch.setenv("PATH", "")
    assert main(["guests", "--json"]) == 0
    assert json.loads(capfd.readouterr().out)[-1]["image"] is None
    assert main(["guests"]) == 0
    out = capfd.readouterr().out
    assert "not fetched yet: bt run linux" in out
    assert str(built / "hello.elf") in out


def test_a_cache_that_cannot_be_written(monkeypatch, cache, capfd):
    def fail(name):
        raise PermissionError(13, "Permission denied", name)

    monkeypatch.setattr(guests, "image", fail)
    assert main(["guests"]) == 2
    assert capfd.readouterr().err.startswith("bt: cannot build the sample guests")
