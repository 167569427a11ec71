# SPDX-License-Identifier: GPL-2.0-or-later
"""The same workload under several engines, side by side: what `bt compare` does.

workloads.py says what is run, runner.py runs it in alternating order, table.py and chart.py show
the results, native.py is the baseline of the nanobenchmarks. docs/compare.md says what the numbers
mean.
"""
