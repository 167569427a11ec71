# SPDX-License-Identifier: GPL-2.0-or-later
"""``python -m bt`` is the ``bt`` command."""

from bt.cli.main import command

if __name__ == "__main__":
    command()
