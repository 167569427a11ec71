# SPDX-License-Identifier: GPL-2.0-or-later
"""``bt scan``: the sensitive instructions in a file, or in every file of a collection.

1. ``files``: which code and which symbols a file holds, whatever its format (``pe`` for Windows);
2. ``work``: one file scanned; pure and picklable, so that it can be done anywhere;
3. ``pool``: many files, on one process, several, or a Dask cluster;
4. ``tables``: what people see; ``work`` has what programs see.
"""
