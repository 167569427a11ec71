# SPDX-License-Identifier: GPL-2.0-or-later
"""What tests of several folders share: one recording of a small guest, made once."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from bt.record.reader import Recording


@pytest.fixture(scope="session")
def tasks_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A recording of `bt run tasks`."""
    from bt.cli import main as cli

    folder = tmp_path_factory.mktemp("record") / "tasks"
    assert cli.main(["run", "tasks", "--record", str(folder)]) == 0
    return folder


@pytest.fixture(scope="session")
def tasks(tasks_folder: Path) -> Recording:
    """The same, read."""
    from bt.record.reader import read

    return read(tasks_folder)
