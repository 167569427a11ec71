# SPDX-License-Identifier: GPL-2.0-or-later
"""What is said of a site against what patcher and translator make of it."""

from __future__ import annotations

import pytest

import guests
from bt.machine.machine import Machine
from bt.scan.work import Options, scan_file
from translator.outcome import BT, PV
from translator.patcher import patch
from translator.sensitive import BY_NAME, TABLE


@pytest.mark.parametrize("name", ["tasks", "nano", "hello", "hello32", "sensitive"])
def test_as_the_patcher_does(name: str) -> None:
    """Where the patcher knows more (what jumps where), it does less; never more."""
    path = guests.image(name)
    said = {s.address: s for s in scan_file(path, Options()).sites}
    _, report = patch(path.read_bytes())
    compared = 0
    for site in report.sites:
        if site.address not in said or said[site.address].bits != site.bits:
            continue                    # code of another size, or behind data
        mine = said[site.address]
        compared += 1
        assert TABLE[mine.row].name == site.row
        if site.how in ("inline", "hypercall"):
            assert mine.pv == site.how, hex(site.address)
        elif site.how == "left":
            assert mine.pv == "untouched" or "overlaps" in site.why, hex(site.address)
        else:
            assert mine.pv in ("inline", "hypercall", "trap"), hex(site.address)
    assert compared >= len(report.sites) / 2 > 3


@pytest.mark.parametrize("name", ["tasks", "hello", "nano"])
def test_as_the_translator_does(name: str) -> None:
    """Each instruction that the translator rewrote was said to be one that it rewrites."""
    path = guests.image(name)
    result = scan_file(path, Options())
    said = {s.address: s for s in result.sites}
    machine = Machine(deterministic=True)
    machine.load(path)
    assert machine.run(timeout=120).status == 0
    made = 0
    for gva, _, row, length, _, stub in machine.vcpu.sites():
        site = said.get(gva)
        if site is None:                # code of another size in the same file
            continue
        made += 1
        assert (site.row, len(site.code)) == (row, length)
        assert site.bt == "stub" if stub else site.bt in ("trap", "stub")
    assert made > 3


def test_words() -> None:
    for name in ("INT3", "PAUSE", "SYSCALL"):
        assert not BY_NAME[name].kernel         # what "untouched" is about
    assert "untouched" in BT and "untouched" in PV
