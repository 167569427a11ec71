; SPDX-License-Identifier: GPL-2.0-or-later
; nano: the seven nanobenchmarks of Adams and Agesen (ASPLOS 2006), each one operation that a VMM
; makes dearer or cheaper, in a loop that reads the time stamp counter before and after. A line a
; pass: "NAME OPERATIONS TICKS". kernel.s says what each does and how to choose; ends with status 0.
.include "../lib/boot.s"

; What lib/priv.s has no macro for.
.macro READ_TSC                 ; -> RAX; clobbers RDX
    rdtsc
    shl rdx, 32
    or rax, rdx
.endm
.macro LOAD_CR8 reg             ; clobbers RAX
    mov cr8, \reg
.endm
.include "kernel.s"
