# SPDX-License-Identifier: GPL-2.0-or-later
"""The micro-guests of tests/core and the encodings of tests/translator are used here too."""

import sys
from pathlib import Path

for folder in ("core", "translator"):
    sys.path.insert(0, str(Path(__file__).parents[1] / folder))
