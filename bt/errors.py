# SPDX-License-Identifier: GPL-2.0-or-later
"""What is wrong with the input, as one line, and the exit statuses of a run.

Everything a user can get wrong ends as :class:`InputError`, which the command line turns into one
line and an exit status. What a guest does wrong is no error of ours: a run that it ends has the
outcome "died" (bt.machine.machine.Outcome), with a report.
"""

EXIT_POWERED_OFF = 0
EXIT_BAD_INPUT = 2
EXIT_GUEST_DIED = 3
EXIT_TIME_LIMIT = 124


class BtError(Exception):
    """Base of the errors that end a run with a message instead of a traceback."""

    exit_status = 1


class InputError(BtError):
    """Bad input from outside: a file, an option, a missing package. The text is one clear line."""

    exit_status = EXIT_BAD_INPUT
