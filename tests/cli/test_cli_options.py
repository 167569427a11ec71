# SPDX-License-Identifier: GPL-2.0-or-later
from __future__ import annotations

from argparse import ArgumentTypeError

import pytest

from bt.cli import options
from bt.cli.main import split_command


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("96M", 96 << 20),
        ("2G", 2 << 30),
        ("2g", 2 << 30),
        ("512K", 512 << 10),
        ("64MiB", 64 << 20),
        ("64MB", 64 << 20),
        ("1048576", 1 << 20),
        (" 1G ", 1 << 30),
    ],
)
def test_size(text, expected):
    assert options.size(text) == expected


@pytest.mark.parametrize("text", ["", "M", "-1M", "1.5G", "1T", "0x10", "1 M x", "٣M", "9" * 30])
def test_not_a_size(text):
    with pytest.raises(ArgumentTypeError, match="not a size"):
        options.size(text)


def test_seconds():
    assert options.seconds("2") == 2.0
    assert options.seconds("0.25") == 0.25


@pytest.mark.parametrize("text", ["0", "-1", "nan", "inf", "soon", ""])
def test_not_seconds(text):
    with pytest.raises(ArgumentTypeError, match="seconds"):
        options.seconds(text)


def test_address():
    assert options.address("0x7c00") == 0x7C00
    assert options.address("4096") == 4096


@pytest.mark.parametrize("text", ["-1", "7c00", "", "x"])
def test_not_an_address(text):
    with pytest.raises(ArgumentTypeError, match="address"):
        options.address(text)


def test_everything_after_the_first_dashes_is_the_guests():
    assert split_command(["run", "linux", "--", "sh", "-c", "x", "--", "y"]) == (
        ["run", "linux"],
        ["sh", "-c", "x", "--", "y"],
    )
    assert split_command(["run", "linux"]) == (["run", "linux"], None)
    assert split_command(["run", "linux", "--"]) == (["run", "linux"], [])
