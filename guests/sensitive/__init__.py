# SPDX-License-Identifier: GPL-2.0-or-later
"""The sensitive guests' sources, and :mod:`guests.sensitive.manifest`, which lists their cases."""
