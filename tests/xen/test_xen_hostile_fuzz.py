# SPDX-License-Identifier: GPL-2.0-or-later
"""Twenty seconds of tools/fuzz_hypercalls.py, each time from another seed; it says which."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.slow
def test_random_hypercalls():
    done = subprocess.run([sys.executable, "tools/fuzz_hypercalls.py", "--seconds", "20"],
                          cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    found = re.match(r"seed \d+: (\d+) domains, (\d+) hypercalls \(.*?(\d+) done, ", done.stdout)
    assert found, done.stdout
    domains, made, succeeded = map(int, found.groups())
    # It means something only if much of it gets past the first check.
    assert domains >= 3 and made >= 500 and succeeded >= 100
