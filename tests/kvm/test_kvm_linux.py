# SPDX-License-Identifier: GPL-2.0-or-later
"""Debian's kernel on the host's KVM: it runs on the processor's, and is refused on kvm_pvm."""

from __future__ import annotations

import subprocess
import sys

import pytest

from bt.kvm.software import PVM, software

pytestmark = [pytest.mark.kvm, pytest.mark.slow]


def test_a_command_in_linux() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "bt", "run", "linux", "--engine", "kvm", "--timeout", "120", "--",
         "sh", "-c", "uname -s; exit 7"],
        stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=300, check=False)
    if software() == PVM:
        assert (done.returncode, done.stdout) == (2, "")
        assert "engine kvm cannot run Linux here: the KVM of this host is a software" in done.stderr
    else:
        assert (done.returncode, done.stdout) == (7, "Linux\n"), done.stderr
