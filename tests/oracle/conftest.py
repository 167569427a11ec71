# SPDX-License-Identifier: GPL-2.0-or-later
"""The oracle: the same guest image, run natively by QEMU."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import runners

import guests


@pytest.fixture(scope="session")
def native() -> Callable[[str], tuple[str, int]]:
    """``native(guest name) -> (output, status)`` under QEMU; each guest runs once a session."""
    if not runners.qemu_available():
        pytest.skip(f"{runners.QEMU} is not installed (Debian: qemu-system-x86)")
    seen: dict[str, tuple[str, int]] = {}

    def run(name: str) -> tuple[str, int]:
        if name not in seen:
            seen[name] = runners.run_qemu(guests.image(name))
        return seen[name]

    return run
