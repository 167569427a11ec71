# SPDX-License-Identifier: GPL-2.0-or-later
"""Recordings of runs: what the translator did and what came into the VMM, kept in a file.

``writer`` makes one while a machine runs, ``reader`` reads it, ``schema`` is the format, which
docs/recording.md describes for other programs. It is SQLite: any language can read it.
"""
