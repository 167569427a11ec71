# SPDX-License-Identifier: GPL-2.0-or-later
"""Xen's interface for 64-bit paravirtual guests, as far as it is not hot.

What a guest calls thousands of times a second (traps, iret, page-table updates, context switches)
is compiled and lives in bt/core. Everything else is here, one file a family of hypercalls. Read
``abi`` (numbers and layouts), ``guest`` (pointers we do not trust), ``domain`` (who is who and the
dispatch), then the family you are after.
"""
