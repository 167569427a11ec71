# SPDX-License-Identifier: GPL-2.0-or-later
"""Stub planning."""

import pytest
from golden import GOLDEN

from translator.rewriter import absorbable, ends_region, jump, plan_stub
from translator.scanner import scan_block

YES = {
    64: """90 6690 0f1f00 0f1f8000000000 66662e0f1f840000000000 f30f1efa 4889c8 89c8 b801000000
        48b80102030405060708 4883c001 31c0 4885c0 488d4808 8d0411 50 4158 5b 4153 6a01 6801000000
        0fb6c0 480fbec1 4863c1 48c1e003 d1e8 480fbae003 4898 99 4887ca f7d8 48ffc0 4883ec08
        8b06 8906 65488b042500000000 480103 48c70300000000 ff36 8f06 a11000feffffffffff""",
    32: "90 89c8 40 4f 50 5b b801000000 8d4c2404 31c0 6a01 83c404 0fb6c0 c1e002 99 8b06 ff36",
}
NO = {
    64: """fa 9c 0f20c0 8cc8 8ed0 c3 cc cd80 e800000000 eb00 7400 f4 488b05000000 00
        488d0500000000 8d0500000000 0f1f0500000000 54 5c 6650 6658 668cc8 8cd8 0fa0 48f7f1 f7f1 c9
        f390 f0480fc108 a4 48ab 0f0b 0f05 0f31 0fa2 ffe0 ff10 678d00 6698c3 9b d9c0 0f28c1 e2fe 0f77
        cf 48cf 0f01f8 e460 0f1f""".replace("05000000 00", "0500000000"),
    32: "1e 06 0e 1f 07 5c 54 6650 cf c9 678b06 f4 9d 60 61 27 ce 67e300",
}


@pytest.mark.parametrize("bits,code", [(b, c) for b, text in YES.items() for c in text.split()])
def test_harmless_instruction_may_be_absorbed(bits, code):
    assert absorbable(bytes.fromhex(code), bits)


@pytest.mark.parametrize("bits,code", [(b, c) for b, text in NO.items() for c in text.split()])
def test_instruction_that_depends_on_its_place_or_can_leave_may_not(bits, code):
    assert not absorbable(bytes.fromhex(code), bits)


@pytest.mark.parametrize("case", GOLDEN, ids=lambda case: f"{case.bits}-{case.code.hex()}")
def test_nothing_in_the_table_may_be_absorbed(case):
    assert not absorbable(case.code, case.bits)


def plan(text: str, address: int = 0x1000, limit: int | None = None, bits: int = 64):
    code = bytes.fromhex(text)
    return plan_stub(code, scan_block(code, address, bits).findings[0], limit)


def test_absorbs_no_more_than_it_needs():
    result = plan("fa 4889c8 50 90 90")
    assert result.absorbed == (b"\x48\x89\xc8", b"\x50")
    assert (result.region, result.code, result.row.name) == (5, b"\xfa", "CLI")
    assert plan("fa 48c7c001000000").region == 8


def test_a_long_site_absorbs_nothing():
    assert plan("2e2e2e2efa c3").absorbed == ()


@pytest.mark.parametrize("text", ["fa c20800 9090", "fa 9c 90909090", "fa 90 90", "fa c3 90",
                                  "fa 7400 9090", "fa 06 909090", "fa fb 909090", "fa ffe0 9090"])
def test_no_room(text):
    assert plan(text) is None


@pytest.mark.parametrize("text,absorbed", [
    ("fa c3 9c9c9c9c", ["c3"]), ("fa 5b c3 c3c3c3", ["5b", "c3"]), ("fa eb10 0606", ["eb10"]),
    ("fa e900000000", ["e900000000"]),
])
def test_nothing_behind_a_branch_that_ends_the_region_is_absorbed(text, absorbed):
    result = plan(text)
    assert [piece.hex() for piece in result.absorbed] == absorbed
    assert result.region == max(5, 1 + sum(map(len, result.absorbed)))


@pytest.mark.parametrize("code,address,bits,target", [
    ("c3", 0x1000, 64, 0), ("eb10", 0x1000, 64, 0x1012), ("ebfe", 0x1000, 64, 0x1000),
    ("e9fbffffff", 0x1000, 64, 0x1000), ("e900f0ffff", 0, 64, 0xFFFFFFFFFFFFF005),
    ("e900f0ffff", 0, 32, 0xFFFFF005), ("7410", 0x1000, 64, None), ("c20800", 0, 64, None),
    ("90", 0, 64, None), ("e800000000", 0, 64, None),
])
def test_ends_region(code, address, bits, target):
    assert ends_region(bytes.fromhex(code), address, bits) == target


def test_limit_and_page_end_are_kept():
    text = "fa 90 90 90 90"
    assert plan(text).region == 5
    assert plan(text, limit=4) is None
    assert plan(text, address=0x1FFB).region == 5
    assert plan(text, address=0x1FFC) is None


@pytest.mark.parametrize("source,target,bits,expected", [
    (0x1000, 0x1005, 64, "e900000000"), (0x1000, 0x1000, 64, "e9fbffffff"),
    (0x1000, 0xFFFFFFFFFFFFF000, 64, "e9fbdfffff"), (0xFFFFFFFF81000000, 0x1000, 64, "e9fb0f007f"),
    (0xFFFFFFFF70000000, 0x1000, 64, None),
    (0xFFFFFFFFFFFFF000, 0x10, 64, "e90b100000"), (0, 0x80000004, 64, "e9ffffff7f"),
    (0, 0x80000005, 64, None), (0x1000, 0xFFFFF000, 32, "e9fbdfffff"),
    (0x1000, 0x90000000, 32, "e9fbefff8f"),
])
def test_jump(source, target, bits, expected):
    result = jump(source, target, bits)
    assert (result and result.hex()) == expected
