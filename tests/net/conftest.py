# SPDX-License-Identifier: GPL-2.0-or-later
"""The tests of this folder share ``netrig``."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
