# SPDX-License-Identifier: GPL-2.0-or-later
"""``bt inspect TARGET``: what the translator did: blocks, sites, exits, side by side.

TARGET is a recording (the folder that ``bt run --record`` made) or anything that ``bt run`` takes,
which is then run and recorded first.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
from collections.abc import Callable
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

from bt.cli import options as values
from bt.errors import InputError

if TYPE_CHECKING:
    from bt.inspect.select import Filter
    from bt.record.reader import Recording

_BLOCKS = 200


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of ``bt inspect``."""
    parser.usage = "bt inspect [options] GUEST|DIR [-- CMD ARG...]"
    parser.epilog = ("With no option that chooses blocks: a summary. The guest linux runs CMD, or "
                     "`true`, and its output is not shown.")
    add = parser.add_argument
    add("target", metavar="GUEST|DIR", help="a guest or a file to run, or a recording")
    add("--engine", default="bt", metavar="NAME", help="to run it with (default: bt)")
    add("--timeout", type=values.seconds, default=120.0, metavar="SECONDS",
        help="stop the guest after so long (default: 120)")
    add("--hot", type=values.whole, metavar="N", help="the N places with most exits")
    add("--blocks", action="store_true", help="every block")
    add("--changed", action="store_true", help="blocks in which something was rewritten")
    add("--symbol", metavar="PATTERN", help="blocks of these symbols (* and ? match)")
    add("--address", type=address_range, metavar="A[-B]", help="blocks at these addresses")
    add("--insn", metavar="NAME", help="blocks in which this instruction was rewritten: CLI, ...")
    add("--exits", type=values.whole, default=0, metavar="N", help="blocks with at least N exits")
    add("--user", action="store_true", help="only user code")
    add("--kernel", action="store_true", help="only the kernel's code")
    add("--limit", type=values.whole, default=_BLOCKS, metavar="N",
        help=f"show at most N blocks (default: {_BLOCKS}; 0: all)")
    add("--json", action="store_true", help="one JSON object, for programs")
    add("--html", type=Path, metavar="FILE", help="write one self-contained page")
    add("--compare", type=Path, metavar="FILE", help="--html: with charts of `bt compare --json`")
    add("-i", "--interactive", action="store_true", help="browse in the terminal")
    add("--no-pager", action="store_true", help="print without a pager")


def address_range(text: str) -> tuple[int, int]:
    """An argparse type: an address, or two with ``-`` between them."""
    first, dash, last = text.partition("-")
    low = values.address(first)
    high = values.address(last) if dash else low
    if high < low:
        raise argparse.ArgumentTypeError(f"{text!r} ends before it begins")
    return low, high


def run(options: argparse.Namespace) -> int:
    """Show it; 0, or the status of a guest that could not be run."""
    from bt.inspect.select import Filter
    from bt.record import reader

    if options.user and options.kernel:
        raise InputError("--user and --kernel exclude each other")
    if options.compare is not None and options.html is None:
        raise InputError("--compare goes with --html")
    _check_output(options.html)
    target = Path(options.target)
    if reader.is_recording(target) or target.is_dir():
        if options.command is not None:
            raise InputError("a recording is not run again: no command after --")
        recording = reader.read(target)
    else:
        recording = _run(options)
    chosen = Filter(options.symbol, options.address, options.insn,
                    True if options.user else False if options.kernel else None, options.changed,
                    options.exits)
    wants_blocks = options.blocks or chosen != Filter()
    limit = options.limit or None
    if options.html is not None:
        from bt.inspect import page

        page.write(recording, options.html, options.compare)
        print(f"bt: wrote {options.html}", file=sys.stderr)
    elif options.interactive:
        if not (sys.stdin.isatty() and sys.stdout.isatty()):
            raise InputError("-i needs a terminal")
        from bt.inspect import browse

        browse.run(recording, chosen)
    elif options.json:
        from bt.inspect import data

        found = data.overview(recording, options.hot or 20)
        if wants_blocks:
            found["blocks"] = data.blocks(recording, islice(chosen.blocks(recording), limit))
        print(json.dumps(found, indent=1))
    else:
        _show(options, recording, chosen, wants_blocks, limit)
    return 0


def _show(options: argparse.Namespace, recording: Recording, chosen: Filter,
          wants_blocks: bool, limit: int | None) -> None:
    from bt.inspect import text
    from bt.inspect.listing import Lister

    pager = not options.no_pager
    if options.hot:
        text.show(text.hot(recording, options.hot), pager=False)
    elif wants_blocks:
        lister = Lister(recording)
        found = list(chosen.blocks(recording))
        if not found:
            raise InputError("no block of this run is like that")
        text.show(text.listings(lister.listing(block) for block in found[:limit]), pager=pager)
        if limit is not None and len(found) > limit:
            print(f"bt: {limit} of {len(found)} blocks; --limit 0 shows all", file=sys.stderr)
    else:
        text.show(text.summary(recording), pager=False)


def _check_output(path: Path | None) -> None:
    """Know what is wrong with the file before the guest runs."""
    if path is not None and not path.absolute().parent.is_dir():
        raise InputError(f"cannot write {path}: there is no folder {path.parent}")


def _run(options: argparse.Namespace) -> Recording:
    """Run the guest with its output thrown away, and read what was recorded."""
    from bt.cli import main
    from bt.record import reader

    with tempfile.TemporaryDirectory(prefix="bt-inspect-") as folder:
        where = Path(folder) / "recording"
        words = ["run", options.target, "--engine", options.engine, "--record", str(where),
                 "--timeout", str(options.timeout)]
        command = options.command or (["true"] if options.target == "linux" else None)
        if command is not None:
            words += ["--", *command]
        print(f"bt: running {options.target} under {options.engine}", file=sys.stderr)
        status = _quietly(main.main, words)
        if not reader.is_recording(where):
            raise InputError(f"{options.target} could not be run (status {status})")
        return reader.read(where)


def _quietly(function: Callable[[list[str]], int], words: list[str]) -> int:
    """Call with standard output and input at /dev/null: they are the guest's."""
    sys.stdout.flush()
    keep = [os.dup(0), os.dup(1)]
    nothing = os.open(os.devnull, os.O_RDWR)
    try:
        os.dup2(nothing, 0)
        os.dup2(nothing, 1)
        return function(words)
    finally:
        sys.stdout.flush()
        for number, saved in enumerate(keep):
            os.dup2(saved, number)
            os.close(saved)
        os.close(nothing)
