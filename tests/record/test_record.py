# SPDX-License-Identifier: GPL-2.0-or-later
"""Recordings against what the guest's image and the machine's own counters say."""

from __future__ import annotations

import json
import shutil
import sqlite3
from pathlib import Path

import lief
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import guests
from bt.cli import main as cli
from bt.errors import InputError
from bt.record import schema
from bt.record.reader import Recording, is_recording, read
from translator.scanner import scan_block


def image_bytes(name: str) -> dict[int, bytes]:
    """{address: bytes} of a guest's loaded segments, as lief reads them."""
    elf = lief.parse(str(guests.image(name)))
    assert isinstance(elf, lief.ELF.Binary)
    return {segment.physical_address: bytes(segment.content) for segment in elf.segments
            if segment.type == lief.ELF.Segment.TYPE.LOAD}


def test_blocks_hold_the_guests_own_bytes(tasks: Recording) -> None:
    """Whatever was rewritten: a block's bytes are those of the image at its physical address."""
    segments = image_bytes("tasks")
    compared = 0
    for block in tasks.blocks:
        for base, content in segments.items():
            if base <= block.gpa and block.gpa + len(block.code) <= base + len(content):
                at = block.gpa - base
                assert content[at:at + len(block.code)] == block.code, hex(block.gva)
                compared += 1
    assert compared > 100


def test_sites_are_what_the_scanner_finds_in_the_blocks(tasks: Recording) -> None:
    found = {finding.address: finding.row.id for block in tasks.blocks
             for finding in scan_block(block.code, block.gva, block.bits,
                                       "kernel" if block.kernel else "user").findings}
    made = {gva: site.row for gva, site in tasks.sites.items()}
    assert made and made.items() <= found.items()
    # And the other way round: nothing sensitive was run as it is.
    assert found.keys() <= made.keys()


def test_exits_by_place_add_up_to_the_counters(tmp_path: Path) -> None:
    folder, stats = tmp_path / "r", tmp_path / "s.json"
    assert cli.main(["run", "tasks", "--record", str(folder), "--stats", str(stats)]) == 0
    counted = json.loads(stats.read_text())["exits"]
    recording = read(folder)
    by_reason: dict[str, int] = {}
    for entry in recording.exits:
        by_reason[entry.reason] = by_reason.get(entry.reason, 0) + entry.count
    for name in ("CLI", "IRET", "OUT", "MOV_TO_CR", "SYSRET", "PUSHF"):
        assert by_reason.get(name, 0) == counted["control"].get(name, 0), name
    assert by_reason["page fault injected"] == counted["memory"]["page fault injected"]
    assert by_reason["SYSCALL"] == counted["control"]["SYSCALL"]
    timeline: dict[str, int] = {}
    for _, reason, count in recording.timeline:
        timeline[reason] = timeline.get(reason, 0) + count
    assert timeline == counted["control"] | counted["memory"]


def test_pages_follow_the_log(tasks: Recording) -> None:
    """A page is code once more than it was written, or as often: code first, then a write."""
    assert tasks.pages
    for _, code, written, _ in tasks.pages:
        assert 0 <= code - written <= 1


def test_any_program_can_read_it(tasks_folder: Path) -> None:
    """The views need nothing of ours."""
    db = sqlite3.connect(tasks_folder / schema.FILE_NAME)
    hot = db.execute("SELECT address, reason, count FROM hot LIMIT 5").fetchall()
    assert len(hot) == 5 and hot[0][2] >= hot[1][2] and int(hot[0][0], 16)
    assert db.execute("SELECT value FROM meta WHERE key = 'outcome'").fetchone() == ("powered-off",)
    db.close()


def test_a_recorded_run_is_the_same_run(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    cli.main(["run", "hello", "--deterministic"])
    plain = capfd.readouterr()
    cli.main(["run", "hello", "--deterministic", "--record", str(tmp_path / "r")])
    assert capfd.readouterr() == plain


def test_engines_without_a_translator_are_recorded_too(tmp_path: Path) -> None:
    assert cli.main(["run", "hello", "--engine", "trap", "--record", str(tmp_path / "r")]) == 0
    recording = read(tmp_path / "r")
    assert recording.blocks and not recording.sites and recording.exits


def test_a_folder_is_not_recorded_into_twice(tasks_folder: Path,
                                             capfd: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["run", "hello", "--record", str(tasks_folder)]) == 2
    assert capfd.readouterr().err == f"bt: {tasks_folder} has a recording already\n"
    assert read(tasks_folder).meta["guest"] == "tasks"


def test_a_folder_that_cannot_be_made(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").write_text("")
    assert cli.main(["run", "hello", "--record", str(tmp_path / "file" / "r")]) == 2
    assert capfd.readouterr().err.count("\n") == 1


@pytest.mark.parametrize("content", [b"", b"\xff\xd8\xff\xe0 a JPEG", b"SQLite format 3\0" * 9])
def test_what_is_no_recording(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "x"
    path.write_bytes(content)
    assert is_recording(path) == content.startswith(b"SQLite format 3\0")
    with pytest.raises(InputError):
        read(path)


def test_another_version_and_an_unfinished_run(tasks_folder: Path, tmp_path: Path) -> None:
    for key, value, words in (("version", "99", "version 99"), ("complete", "0", "not ended")):
        folder = tmp_path / key
        shutil.copytree(tasks_folder, folder)
        db = sqlite3.connect(folder / schema.FILE_NAME)
        db.execute("UPDATE meta SET value = ? WHERE key = ?", (value, key))
        db.commit()
        db.close()
        with pytest.raises(InputError, match=words):
            read(folder)


@settings(max_examples=60, deadline=None, suppress_health_check=[
    HealthCheck.function_scoped_fixture])
@given(st.data())
def test_damaged_recordings(tasks_folder: Path, tmp_path: Path, data: st.DataObject) -> None:
    """Any bytes changed or cut off: it is read, or refused in a line."""
    content = bytearray((tasks_folder / schema.FILE_NAME).read_bytes())
    for _ in range(data.draw(st.integers(1, 8))):
        at = data.draw(st.integers(16, len(content) - 1))
        content[at] = data.draw(st.integers(0, 255))
    path = tmp_path / "damaged"
    path.write_bytes(content[:data.draw(st.integers(0, len(content)))])
    try:
        read(path)
    except InputError as error:
        assert "\n" not in str(error)


@pytest.mark.slow
def test_the_hottest_places_of_linux_have_kernel_names(
        tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "boot"
    assert cli.main(["run", "linux", "--record", str(folder), "--", "cat", "/proc/kallsyms"]) == 0
    kallsyms = {int(line.split()[0], 16): line.split()[2]
                for line in capfd.readouterr().out.splitlines()}
    recording = read(folder)
    hot = [entry for entry in recording.exits if entry.gva][:20]
    for entry in hot:
        found = recording.symbol_of(entry.gva)
        assert found is not None, hex(entry.gva)
        # What the kernel says of itself: some name at that very address.
        assert entry.gva - found[1] in kallsyms
    assert cli.main(["inspect", str(folder), "--hot", "20"]) == 0
    assert "text_poke_early" in capfd.readouterr().out
