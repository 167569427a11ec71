# SPDX-License-Identifier: GPL-2.0-or-later
"""``bt guests``: what can be run by name."""

from __future__ import annotations

import argparse
import json
from typing import Any

from bt.errors import InputError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of ``bt guests``."""
    parser.add_argument("--json", action="store_true", help="print a JSON array for programs")


def rows() -> list[dict[str, Any]]:
    """One object a guest: name, shows, image (path; null when not fetched yet), engines."""
    import guests
    from guests.linux import fetch

    try:
        found = [
            {
                "name": guest.name,
                "shows": guest.shows,
                "image": str(guests.image(guest.name)),
                "engines": list(guest.engines),
            }
            for guest in guests.all_guests()
        ]
    except OSError as error:
        raise InputError(f"cannot build the sample guests: {error}") from None
    kernel = fetch.cached_kernel()
    linux = {
        "name": "linux",
        "shows": "Debian's own cloud kernel with a busybox shell, fetched on first use",
        "image": str(kernel) if kernel else None,
        "engines": ["bt", "pv", "hvm", "kvm"],
    }
    return [*found, linux]


def run(options: argparse.Namespace) -> int:
    """Print the list."""
    if options.command is not None:
        raise InputError("bt guests takes no command")
    table = rows()
    if options.json:
        print(json.dumps(table, indent=2))
        return 0
    width = max(len(row["name"]) for row in table)
    for row in table:
        print(f"{row['name']:<{width}}  {row['shows']} ({', '.join(row['engines'])})")
        print(f"{'':<{width}}  {row['image'] or 'not fetched yet: bt run ' + row['name']}")
    return 0
