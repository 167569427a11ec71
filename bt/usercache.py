# SPDX-License-Identifier: GPL-2.0-or-later
"""Where the user's cache is: what takes long to make or to fetch is kept there."""

from __future__ import annotations

import os
from pathlib import Path

from bt.errors import InputError


def find(name: str) -> Path | None:
    """What the cache has or would have as ``name``, a file or folder; None if there is no home.

    ``$XDG_CACHE_HOME/ring1/NAME``, or ``~/.cache/ring1/NAME``. A relative path in the variable is
    ignored (XDG Base Directory Specification, "Basics"). Nothing is made.
    """
    base = Path(os.environ.get("XDG_CACHE_HOME", ""))
    if not base.is_absolute():
        base = Path(os.path.expanduser("~"), ".cache")
    return base / "ring1" / name if base.is_absolute() else None


def need(name: str) -> Path:
    """The same for who cannot do without. Raises InputError."""
    found = find(name)
    if found is None:
        raise InputError("no home folder to cache files in; set XDG_CACHE_HOME")
    return found
