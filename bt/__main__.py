# SPDX-License-Identifier: GPL-2.0-or-later
"""``python -m bt`` is the ``bt`` command."""

import sys

from bt.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
