; SPDX-License-Identifier: GPL-2.0-or-later
; tasks-pv: guests/tasks built from the same source for Ring1's paravirtual interface
; (docs/pv-abi.md): every privileged operation is a hypercall or a store to the vCPU page.
; Prints what `tasks` prints and ends as it ends. Engine pv only.
.include "../lib/boot.s"
.include "../lib/pv.s"
.include "../tasks/kernel.s"
