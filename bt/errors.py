# SPDX-License-Identifier: GPL-2.0-or-later
"""The two ways a run can fail that are not bugs of ours, and their exit statuses.

Everything a user can get wrong ends as :class:`InputError`; everything a guest can do wrong ends
as :class:`GuestDied`. The command line turns them into one line (or a report) and an exit status,
so no other code has to know about processes.
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


class GuestDied(BtError):
    """The guest cannot go on (triple fault, panic, shutdown): its text opens the report."""

    exit_status = EXIT_GUEST_DIED
