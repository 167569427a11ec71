# SPDX-License-Identifier: GPL-2.0-or-later
"""``bt scan FILE...``: the sensitive instructions in guest binaries, and what becomes of them."""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from bt.cli.options import address
from bt.errors import InputError

if TYPE_CHECKING:
    from bt.scan.work import Options, Result

_TOP = 20
_LONG = 4                   # files from which on progress is shown


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of ``bt scan``."""
    parser.epilog = (
        "FILE: an ELF file (kernel, module, program), a Linux bzImage, a PE driver or kernel, each "
        "also packed with gzip, xz, zstd...; a flat binary with --arch; a guest that bt guests "
        "lists; or a folder of files. docs/scan.md says what is counted."
    )
    add = parser.add_argument
    add("files", nargs="+", type=Path, metavar="FILE",
        help="a guest binary or its name, or a folder of binaries")
    add("--arch", type=int, choices=(16, 32, 64), help="FILE is a flat binary of this code size")
    add("--base", type=address, metavar="ADDRESS", help="where a flat binary is loaded (default 0)")
    add("--ring", type=int, choices=(0, 3),
        help="the ring the code is meant for (default: by the looks of the file)")
    add("--system-map", type=Path, metavar="FILE", help="take names from a System.map or a vmlinux")
    group = parser.add_argument_group("what to count and show")
    add = group.add_argument
    add("--list", action="store_true", help="list every site, with address and disassembly")
    add("--class", dest="classes", action="append", metavar="CLASS", default=[],
        help="sensitive, privileged or wanted only; may be repeated, as the next three")
    add("--instruction", action="append", metavar="NAME", default=[],
        help="one row of the table only, say CLI")
    add("--symbol", action="append", metavar="PATTERN", default=[],
        help="sites in these symbols only, say 'native_*'")
    add("--section", action="append", metavar="PATTERN", default=[],
        help="code in these sections only, say '.init*'")
    add("--top", type=int, metavar="N", default=_TOP,
        help=f"show the N first symbols and files (default {_TOP}; 0: all)")
    add("--json", action="store_true", help="print one JSON object for programs")
    group = parser.add_argument_group("how to do it")
    group.add_argument("--jobs", type=int, metavar="N", default=0,
                       help="processes for several files (default: one a core)")
    group.add_argument("--cluster", metavar="ADDRESS",
                       help="scan on the workers of this Dask scheduler, say tcp://host:8786")


def run(options: argparse.Namespace) -> int:
    """Scan and print. 2 if a file that was named could not be scanned, or none in a folder."""
    if options.command is not None:
        raise InputError("bt scan takes no command")
    what = _options(options)
    paths, from_folder = _paths(options.files)
    single = len(paths) == 1 and not from_folder
    results = sorted(_results(paths, what, options, single), key=lambda r: _order(paths, r.path))
    good = [result for result in results if not result.error]
    failed = [result for result in results
              if result.error and not (result.no_code and Path(result.path) in from_folder)]
    if single and failed:
        raise InputError(failed[0].error)
    if options.json:
        _print_json(results, from_folder)
    else:
        _tell(good, options, single)
        passed = len(results) - len(good) - len(failed)
        if passed:
            print(f"{passed:,} other files hold no code")
    sys.stdout.flush()
    for result in failed:
        print(f"bt: {result.error}", file=sys.stderr)
    if not results:
        raise InputError("there are no files in " + ", ".join(map(str, options.files)))
    named = [result for result in failed if Path(result.path) not in from_folder]
    return 2 if named or not good else 0


def _options(options: argparse.Namespace) -> Options:
    from bt.scan.work import CLASSES, Options
    from translator.sensitive import BY_NAME

    for name in options.classes:
        if name not in CLASSES:
            raise InputError(f"no class {name!r}: one of {', '.join(CLASSES)}")
    instructions = tuple(name.upper() for name in options.instruction)
    for name in instructions:
        if name not in BY_NAME:
            raise InputError(f"no instruction {name!r} in the table (docs/sensitive.md lists them)")
    if options.base is not None and options.arch is None:
        raise InputError("--base goes with --arch: it is for flat binaries")
    if options.top < 0 or options.jobs < 0:
        raise InputError("--top and --jobs take a number from 0 on")
    if options.system_map is not None:
        from bt.symbols import of_file
        if not of_file(options.system_map):
            raise InputError(f"{options.system_map}: has no symbols")
    return Options(bits=options.arch, base=options.base or 0, ring=options.ring,
                   system_map=options.system_map and options.system_map.absolute(),
                   classes=tuple(options.classes), instructions=instructions,
                   symbols=tuple(options.symbol), sections=tuple(options.section),
                   keep_sites=options.list)


def _paths(named: list[Path]) -> tuple[dict[Path, int], set[Path]]:
    """Every file to scan with its place in the order, and which of them were found in folders."""
    from bt.scan.files import listed

    paths: dict[Path, int] = {}
    found: set[Path] = set()
    for path in named:
        if path.is_dir():
            for file in listed(path):
                if file not in paths:
                    found.add(file)
                    paths[file] = len(paths)
        else:
            paths.setdefault(_file(path), len(paths))
    return paths, found


def _file(path: Path) -> Path:
    """The file of that name, or the image of the guest of that name. May fetch a kernel."""
    if path.exists() or len(path.parts) != 1:
        return path
    if path.name == "linux":
        from guests.linux import fetch
        return fetch.kernel()
    import guests
    if path.name in (guest.name for guest in guests.all_guests()):
        try:
            return guests.image(path.name)
        except OSError as error:
            raise InputError(f"cannot build the guest {path.name}: {error}") from None
    return path


def _order(paths: dict[Path, int], path: str) -> int:
    return paths.get(Path(path), len(paths))


def _results(paths: dict[Path, int], what: Options, options: argparse.Namespace,
             single: bool) -> Iterator[Result]:
    from bt.scan.pool import scan_all
    from bt.scan.work import scan_file

    if single and options.cluster is None:
        yield from (scan_file(path, what) for path in paths)
        return
    # A cluster's workers have folders of their own.
    given = {path.absolute() if options.cluster else path: path for path in paths}
    from dataclasses import replace

    results = (replace(result, path=str(given[Path(result.path)]))
               for result in scan_all(given, what, jobs=options.jobs, cluster=options.cluster))
    if len(paths) < _LONG or not sys.stderr.isatty():
        yield from results
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TimeRemainingColumn

    with Progress("{task.description}", BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(),
                  console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task("scanning", total=len(paths))
        for result in results:
            progress.advance(task)
            yield result


def _print_json(results: list[Result], from_folder: set[Path]) -> None:
    from bt.scan.tables import is_hole, merged
    from bt.scan.work import CLASSES, SCHEMA
    from translator.sensitive import TABLE

    good = [result for result in results if not result.error]
    counts = merged(good)
    passed = [r.path for r in results if r.no_code and Path(r.path) in from_folder]
    print(json.dumps({
        "schema": SCHEMA,
        "files": [result.to_json() for result in good],
        "errors": [result.to_json() for result in results
                   if result.error and result.path not in passed],
        "no_code": passed,
        "totals": {
            "files": len(good), "instructions": sum(r.instructions for r in good),
            "code_bytes": sum(r.code_bytes for r in good), "sites": sum(counts.values()),
            "holes": sum(n for k, n in counts.items() if is_hole(TABLE[k.row])),
            "by_class": {name: sum(n for k, n in counts.items()
                                   if TABLE[k.row].instr_class == name) for name in CLASSES},
        },
    }, indent=2))


def _tell(results: list[Result], options: argparse.Namespace, single: bool) -> None:
    from bt.scan import tables

    out, rich = sys.stdout, os.isatty(1)
    if options.list:
        for result in results:
            for line in tables.listing(result, with_path=not single):
                print(line)
        return
    if single:
        result = results[0]
        print(tables.headline(result), end="\n\n")
        if result.total:
            tables.by_instruction(results).write(out, rich)
        if result.sections:
            tables.by_section(result).write(out, rich)
        symbols = tables.by_symbol(result, options.top)
        if symbols is not None:
            symbols.write(out, rich)
    elif 1 < len(results) <= tables.SIDE_BY_SIDE:
        for result in results:
            print(tables.headline(result))
        print()
        tables.side_by_side(results).write(out, rich)
    elif results:
        tables.by_file(results, options.top).write(out, rich)
        tables.by_instruction(results).write(out, rich)
