# SPDX-License-Identifier: GPL-2.0-or-later
"""`binaries` is a module of these tests."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
