# SPDX-License-Identifier: GPL-2.0-or-later
"""The micro-guests of tests/core are used here too."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "core"))
