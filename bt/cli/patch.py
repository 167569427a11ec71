# SPDX-License-Identifier: GPL-2.0-or-later
"""``bt patch KERNEL -o OUT``: a kernel made paravirtual, for ``bt run --engine pv``."""

from __future__ import annotations

import argparse
import json
import os
import stat
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from bt.errors import InputError

if TYPE_CHECKING:
    from translator.patcher import Report

_MAX_FILE = 256 << 20
_LISTED = 20            # names and sites shown to people; --json has them all


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of ``bt patch``."""
    parser.add_argument("kernel", type=Path, metavar="KERNEL", help="an ELF file, 32- or 64-bit")
    parser.add_argument("-o", "--output", type=Path, required=True, metavar="OUT")
    parser.add_argument("--traps", action="store_true",
                        help="move no instruction: a trap in place of each sensitive one")
    parser.add_argument("--json", action="store_true", help="print the report as JSON")


def run(options: argparse.Namespace) -> int:
    """Patch, write, report."""
    if options.command is not None:
        raise InputError("bt patch takes no command")
    name = options.kernel.name
    data = _read(options.kernel)
    from translator.image import ImageError
    from translator.patcher import patch

    try:
        patched, report = patch(data, stubs=not options.traps)
    except ImageError as error:
        raise InputError(f"{name}: {error}") from None
    _write(options.output, patched)
    if options.json:
        print(json.dumps(report.to_json(), indent=2))
    else:
        _tell(name, options.output, report)
    return 0


def _read(path: Path) -> bytes:
    try:
        with open(path, "rb") as file:
            info = os.fstat(file.fileno())
            if not stat.S_ISREG(info.st_mode):
                raise InputError(f"{path.name}: is not a regular file")
            if info.st_size > _MAX_FILE:
                raise InputError(f"{path.name}: is larger than {_MAX_FILE >> 20} MB")
            return file.read(_MAX_FILE + 1)
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: {getattr(error, 'strerror', None) or error}") from None


def _write(path: Path, data: bytes) -> None:
    """All of it or nothing, so that KERNEL itself may be OUT."""
    temporary = None
    try:
        with tempfile.NamedTemporaryFile(dir=path.parent, delete=False) as file:
            temporary = file.name
            file.write(data)
        mask = os.umask(0)
        os.umask(mask)
        os.chmod(temporary, 0o777 & ~mask)
        os.replace(temporary, path)
    except (OSError, ValueError) as error:
        if temporary is not None and os.path.exists(temporary):
            os.unlink(temporary)
        raise InputError(f"{path}: {getattr(error, 'strerror', None) or error}") from None


def _tell(name: str, output: Path, report: Report) -> None:
    counts = report.counts
    print(f"{name}: {sum(counts.values())} sensitive instructions among {report.instructions}")
    print(f"  {counts['inline']:5} done in a stub, without the VMM")
    print(f"  {counts['hypercall']:5} made a hypercall, in a stub")
    print(f"  {counts['trap']:5} made a trap: no room for a jump")
    print(f"  {counts['left']:5} left as they are")
    for site in [site for site in report.sites if site.how == "left"][:_LISTED]:
        print(f"        {site.address:#x}: {site.text} ({site.why})")
    rest = report.code_bytes - report.reached_bytes
    if rest > 0:
        print(f"  {rest} of {report.code_bytes} bytes in code sections were never reached, and not "
              "looked at")
    if report.stripped:
        print("  no symbols: only what the entry point leads to was looked at")
    elif report.unreached:
        shown = ", ".join(report.unreached[:_LISTED])
        more = len(report.unreached) - _LISTED
        print(f"  symbols among them: {shown}" + (f" and {more} more" * (more > 0)))
    print(f"  written to {output}")
