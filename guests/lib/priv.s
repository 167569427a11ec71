; SPDX-License-Identifier: GPL-2.0-or-later
; Every privileged or sensitive operation a 64-bit kernel here performs, one macro each. A kernel
; written with these has its whole need of ring 0 in one place: a paravirtual build of the same
; source replaces this file (and nothing else) with hypercalls.

.macro CLI
    cli
.endm
.macro STI_HLT                  ; wait for an interrupt; STI's shadow closes the race before HLT
    sti
    hlt
.endm
.macro IRETQ
    iretq
.endm
.macro SYSRETQ
    sysretq
.endm
.macro SWAPGS
    swapgs
.endm
.macro READ_CR2 reg
    mov \reg, cr2
.endm
.macro READ_CR3 reg
    mov \reg, cr3
.endm
.macro LOAD_CR3 reg
    mov cr3, \reg
.endm
.macro LOAD_GDT pointer
    lgdt [\pointer]
.endm
.macro LOAD_IDT pointer
    lidt [\pointer]
.endm
.macro LOAD_TR selector         ; clobbers EAX
    mov eax, \selector
    ltr ax
.endm
.macro FLUSH_PAGE reg
    invlpg [\reg]
.endm
.macro WRITE_MSR number, value  ; clobbers RAX RCX RDX
    mov ecx, \number
    mov rax, \value
    mov rdx, rax
    shr rdx, 32
    wrmsr
.endm
.macro OUTB port, value         ; clobbers AL (and DX for a port above 0xff)
    mov al, \value
.if \port > 0xff
    mov dx, \port
    out dx, al
.else
    out \port, al
.endif
.endm
