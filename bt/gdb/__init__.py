# SPDX-License-Identifier: GPL-2.0-or-later
"""A debugger's door: gdb's remote serial protocol (gdb manual, appendix E).

`packet` frames, `target` describes the registers, `session` answers requests, `server` has the
socket. A session runs on the vCPU's thread while the guest stands still, so that nothing of the
machine is touched from two threads; while the guest runs, a thread listens for gdb's Ctrl-C.
"""
