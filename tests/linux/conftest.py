# SPDX-License-Identifier: GPL-2.0-or-later
"""What every test here needs: Debian's kernel in the cache, and ``bt`` as its own process.

All of them boot a real kernel with the real command line, so all are slow.
"""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest
from linuxrig import PATIENCE, ROOT, Result, bt_command

from bt.errors import InputError
from guests.linux import fetch

HERE = Path(__file__).parent


def pytest_collection_modifyitems(items):
    for item in items:
        if HERE in item.path.parents:
            item.add_marker(pytest.mark.slow)


@pytest.fixture(scope="session")
def fetched():
    """``fetched(package)``: a Debian kernel. Where it cannot be had the test skips; CI must."""

    def get(package: str) -> Path:
        try:
            return fetch.kernel(package)
        except InputError as error:
            if os.environ.get("CI"):
                raise
            pytest.skip(str(error))

    return get


@pytest.fixture(scope="session")
def debian(fetched):
    """The kernel and the busybox that ``bt run linux`` boots, fetched once."""
    return fetched(fetch.KERNEL_PACKAGE), fetch.busybox()


@pytest.fixture
def bt(debian):
    """``bt(*arguments, input=...)``: run it to its end. stdin is /dev/null or ``input``."""

    def run(*arguments: str, input: bytes | None = None) -> Result:
        stdin = {"stdin": subprocess.DEVNULL} if input is None else {"input": input}
        done = subprocess.run(bt_command(*arguments), **stdin, capture_output=True,
                              timeout=PATIENCE, cwd=ROOT)
        return Result(done.returncode, done.stdout.decode("utf-8", "replace"),
                      done.stderr.decode("utf-8", "replace"))

    return run
