; SPDX-License-Identifier: GPL-2.0-or-later
; nano-pv: guests/nano built from the same source for Ring1's paravirtual interface
; (docs/pv-abi.md): every privileged operation is a hypercall. Engine pv only.
.include "../lib/boot.s"
.include "../lib/pv.s"

.equ HC_READ_TSC, 20

.macro READ_TSC
    HYPERCALL HC_READ_TSC
    mov rax, rdx
.endm
.macro LOAD_CR8 reg
    SAVED_HYPERCALL HC_WRITE_CR, 8, \reg
.endm
.include "../nano/kernel.s"
