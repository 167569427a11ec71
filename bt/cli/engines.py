# SPDX-License-Identifier: GPL-2.0-or-later
"""``bt engines``: which ways there are to run a guest's kernel, and whether each can be used here.
"""

from __future__ import annotations

import argparse
import json
import textwrap
from typing import Any

from bt.errors import InputError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of ``bt engines``."""
    parser.add_argument("--json", action="store_true", help="print a JSON array for programs")


def rows() -> list[dict[str, Any]]:
    """One object an engine: name, summary, usable, why (not; null: it is), remark ("": none)."""
    from bt.engines import ENGINES

    found = []
    for info in ENGINES.values():
        engine = info.open()
        why = engine.unusable()
        found.append({"name": info.name, "summary": info.summary, "usable": why is None,
                      "why": why, "remark": "" if why else engine.remark()})
    return found


def run(options: argparse.Namespace) -> int:
    """Print the list."""
    if options.command is not None:
        raise InputError("bt engines takes no command")
    table = rows()
    if options.json:
        print(json.dumps(table, indent=2))
        return 0
    width = max(len(row["name"]) for row in table)
    for row in table:
        lines = [row["summary"], row["remark"] if row["usable"] else f"not here: {row['why']}"]
        name = row["name"]
        for line in filter(None, lines):
            print(textwrap.fill(line, 100, initial_indent=f"{name:<{width}}  ",
                                subsequent_indent=" " * (width + 2)))
            name = ""
    return 0
