# SPDX-License-Identifier: GPL-2.0-or-later
"""``bt``: finds the command, and turns every way a run can end into an exit status.

0 the guest powered off (or the status of its command), 2 bad input, 3 the guest died, 124 the time
limit, 128 + n ended by signal n.
"""

from __future__ import annotations

import argparse
import atexit
import gc
import os
import sys
import threading
from collections.abc import Sequence
from importlib import import_module
from typing import NoReturn

from bt.errors import BtError, InputError

# Command -> what it does. A command is a module here with add_arguments(parser) and
# run(options) -> exit status; it is imported only when it is the one asked for.
COMMANDS = {
    "run": "run a guest; its console is this terminal",
    "guests": "list what can be run",
    "engines": "list the ways to run a kernel, and which can be used here",
    "inspect": "show what the translator did to a guest",
    "compare": "run the same work under several engines and compare",
    "patch": "make a kernel paravirtual, for engine pv",
    "scan": "count the sensitive instructions in guest binaries, and say what becomes of them",
}
_DISTRIBUTION = "ring1"


class Parser(argparse.ArgumentParser):
    """An ArgumentParser whose errors are :class:`InputError`: one line, not a page of usage."""

    def error(self, message: str) -> NoReturn:
        raise InputError(f"{message} (try {self.prog} --help)")


class _Version(argparse.Action):
    """--version; reading the package's metadata costs 20 ms, so only when asked."""

    def __call__(self, *_: object) -> NoReturn:
        from importlib.metadata import PackageNotFoundError, version

        try:
            print(f"bt {version(_DISTRIBUTION)}")
        except PackageNotFoundError:
            print("bt (not installed)")
        raise SystemExit(0)


def build_parser(command: str | None) -> Parser:
    """The parser; only ``command`` gets its options, the others are there to be listed."""
    parser = Parser(prog="bt", description="Run real kernels on the Unicorn CPU, one ring down.")
    parser.add_argument("--version", action=_Version, nargs=0, help="show the version and exit")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    for name, summary in COMMANDS.items():
        sub = commands.add_parser(
            name, help=summary, description=f"{summary[0].upper()}{summary[1:]}."
        )
        if name == command:
            module = import_module(f"bt.cli.{name}")
            module.add_arguments(sub)
            sub.set_defaults(run=module.run)
    return parser


def split_command(argv: Sequence[str]) -> tuple[list[str], list[str] | None]:
    """Our own arguments, and the guest's command after ``--`` (None without a ``--``)."""
    if "--" not in argv:
        return list(argv), None
    at = list(argv).index("--")
    return list(argv[:at]), list(argv[at + 1 :])


def _fill_closed_descriptors() -> None:
    """/dev/null for each of 0, 1, 2 that is closed, or a file opened later would become stdin."""
    for fd in range(3):
        try:
            os.fstat(fd)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest free number, which is fd


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line ``argv`` (default: the process's) and return the exit status."""
    _fill_closed_descriptors()
    try:
        ours, guest_command = split_command(sys.argv[1:] if argv is None else argv)
        name = next((word for word in ours if word in COMMANDS), None)
        options = build_parser(name).parse_args(ours)
        options.command = guest_command
        status: int = options.run(options)
        if sys.stdout is not None:  # None: it was closed when the process started
            sys.stdout.flush()
        return status
    except SystemExit as end:  # argparse's --help and --version
        return end.code if isinstance(end.code, int) else 0
    except BtError as error:
        print(f"bt: {error}", file=sys.stderr)
        return error.exit_status
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        # Nobody reads our output; the interpreter must not find that out again at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        return 141


def command() -> NoReturn:
    """The program ``bt``: :func:`main`, and the end of the process.

    Python's own end of a process takes every object apart, the guest's translated blocks among
    them: 8 % of `bt run hello`. What has to be closed has been; what atexit has to do is done.
    """
    gc.set_threshold(50_000)  # a start makes many objects and hardly any garbage
    status = main()
    if threading.active_count() > 1:
        sys.exit(status)
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        if stream is not None:
            stream.flush()
    os._exit(status)
