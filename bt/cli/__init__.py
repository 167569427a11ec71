# SPDX-License-Identifier: GPL-2.0-or-later
"""The command line: one file a command, found by ``main``.

Starting up is part of what ``bt run`` is measured by, so a command's module imports what it needs
when it runs. Options are read with argparse: typer takes 100 ms more before it has looked at
anything (argparse 10), a fifteenth of a whole Linux boot.
"""
