# SPDX-License-Identifier: GPL-2.0-or-later
"""``bt inspect``: listings against the recording, filters, output, bad input."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import pytest

from bt.cli import main as cli
from bt.errors import InputError
from bt.inspect.listing import Lister, disassemble
from bt.inspect.select import Filter, by_reason, by_symbol, hottest
from bt.record.reader import Block, Recording, Site
from translator.sensitive import BY_NAME

NO_BLOCK = Recording({}, [], {}, [], {}, [], [], [])


def block(code: bytes, gva: int = 0x1000) -> Block:
    return Block(gva, gva, 64, True, code, 0, 0, 1)


def test_a_trap_is_one_byte() -> None:
    code = bytes.fromhex("9c58fac3")                        # pushf; pop rax; cli; ret
    site = Site(0x1002, 64, BY_NAME["CLI"].id, b"\xfa", 0)
    found = Lister(Recording({}, [], {0x1002: site}, [], {}, [], [], [])).listing(block(code))
    assert [(line.text, line.state, line.now) for line in found.lines] == [
        ("pushfq", "", None), ("pop rax", "", None), ("cli", "trap", b"\xcc"), ("ret", "", None)]
    assert "faults outside ring 0" in found.lines[2].why and found.changed


def test_a_stub_takes_its_neighbours_in() -> None:
    code = bytes.fromhex("fa4889c5c3")                      # cli; mov rbp, rax; ret
    site = Site(0x1000, 64, BY_NAME["CLI"].id, b"\xfa", 0, b"\x90\xc3", 0xFFFFFFFFFFE58000, 5)
    found = Lister(Recording({}, [], {0x1000: site}, [], {}, [], [], [])).listing(block(code))
    assert [line.state for line in found.lines] == ["stub", "absorbed", "absorbed"]
    assert found.lines[0].now == b"\xe9" and found.lines[0].now_text == "jmp 0xffffffffffe58000"
    assert [text for _, _, text in found.stubs[0][1]] == ["nop", "ret"]
    taken = Site(*[getattr(site, name) for name in Site.__dataclass_fields__][:-1], True)
    back = Lister(Recording({}, [], {0x1000: taken}, [], {}, [], [], [])).listing(block(code))
    assert [line.state for line in back.lines] == ["trap", "", ""]
    assert "stub until" in back.lines[0].why


def test_bytes_that_are_no_instruction() -> None:
    assert disassemble(b"\x0f", 0x10, 64) == [(0x10, b"\x0f", ".byte 0x0f")]
    assert disassemble(b"\xff\xff\x90", 0, 64)[-1] == (2, b"\x90", "nop")


def test_filters_agree_with_the_sites(tasks: Recording) -> None:
    changed = {one.gva for one in Filter(changed=True).blocks(tasks)}
    lister = Lister(tasks)
    assert changed == {one.gva for one in tasks.blocks if lister.listing(one).changed}
    for one in Filter(instruction="iret").blocks(tasks):
        assert any("iret" in line.text and line.state for line in lister.listing(one).lines)
    user = list(Filter(user=True).blocks(tasks))
    assert user and not any(one.kernel for one in user)
    busy = list(Filter(exits=100).blocks(tasks))
    assert busy == [one for one in tasks.blocks if lister.listing(one).exits >= 100] and busy
    some = tasks.blocks[len(tasks.blocks) // 2]
    assert some in list(Filter(address=(some.gva, some.gva)).blocks(tasks))
    with pytest.raises(InputError, match="no sensitive instruction"):
        list(Filter(instruction="nop").blocks(tasks))


def test_symbols_name_blocks_and_exits() -> None:
    recording = Recording({}, [block(b"\xc3", 0x1010)], {}, [], {}, [], [], [],
                          [(0x1000, 0x20, "start"), (0x2000, 0, "end")])
    assert recording.symbol(0x1010) == "start+0x10" and recording.symbol(0x1000) == "start"
    assert recording.symbol(0x1020) is None and recording.symbol(0x2fff) == "end+0xfff"
    assert recording.symbol(0xfff) is None
    assert list(Filter(symbol="st*").blocks(recording)) == recording.blocks
    assert not list(Filter(symbol="end").blocks(recording))


def test_totals(tasks: Recording) -> None:
    assert sum(count for _, count, _ in by_symbol(tasks)) == sum(e.count for e in tasks.exits)
    counts = [count for _, _, count, _ in by_reason(tasks)]
    assert counts == sorted(counts, reverse=True)
    assert [e.count for e in hottest(tasks, 5)] == sorted(
        (e.count for e in tasks.exits), reverse=True)[:5]


def test_the_summary_and_the_hot_list(tasks_folder: Path,
                                      capfd: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["inspect", str(tasks_folder)]) == 0
    out = capfd.readouterr().out
    assert "tasks under bt: powered-off, status 0" in out and "exits by reason" in out
    assert cli.main(["inspect", str(tasks_folder), "--hot", "3"]) == 0
    lines = capfd.readouterr().out.splitlines()
    assert "the 3 hottest places" in lines[0] and len(lines) == 5


def test_json_has_both_sides(tasks_folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["inspect", str(tasks_folder), "--insn", "CLI", "--limit", "0", "--json"]) == 0
    found = json.loads(capfd.readouterr().out)
    assert found["blocks"]
    for one in found["blocks"]:
        assert any(line["text"] == "cli" and line["state"] in ("trap", "stub")
                   and line["code"] == "fa" for line in one["lines"])


def test_a_guest_is_run_and_its_output_kept_back(capfd: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["inspect", "hello", "--changed", "--limit", "2"]) == 0
    said = capfd.readouterr()
    assert "Hello" not in said.out and "int3" in said.out
    assert "bt: 2 of " in said.err


@pytest.mark.parametrize(("words", "says"), [
    (["/bin/true"], "could not be run"),
    (["nothing-like-it"], "could not be run"),
    (["hello", "--address", "5-3"], "ends before it begins"),
    (["hello", "--html", "/nowhere/x.html"], "there is no folder"),
    (["hello", "--compare", "x"], "goes with --html"),
    (["hello", "--user", "--kernel"], "exclude each other"),
    (["hello", "--symbol", "zz*"], "no block of this run is like that"),
    (["hello", "-i"], "needs a terminal"),
])
def test_bad_input_is_one_line(words: list[str], says: str,
                               capfd: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["inspect", *words]) == 2
    err = [line for line in capfd.readouterr().err.splitlines() if "running" not in line]
    assert says in err[-1] and "Traceback" not in "".join(err)


def test_a_folder_without_a_recording(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["inspect", str(tmp_path)]) == 2
    assert "is no recording" in capfd.readouterr().err


def test_the_interactive_view(tasks: Recording) -> None:
    asyncio.run(browse(tasks))


async def browse(tasks: Recording) -> None:
    from textual.widgets import DataTable, Static

    from bt.inspect.browse import Browser

    app = Browser(tasks, Filter())
    async with app.run_test(size=(120, 40)) as pilot:
        table = app.query_one(DataTable)
        assert table.row_count == len(tasks.blocks)
        await pilot.press("c")
        changed = table.row_count
        assert 0 < changed < len(tasks.blocks)
        await pilot.press("s")
        exits = [int(table.get_cell_at((row, 1)) or 0) for row in range(changed)]
        assert exits == sorted(exits, reverse=True)
        await pilot.press("c", "slash", *f"{tasks.blocks[3].gva:x}", "enter")
        assert table.row_count >= 1
        await pilot.press("escape", "down")
        assert app.query_one("#block", Static).visual is not None
        await pilot.press("q")
