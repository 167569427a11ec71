; SPDX-License-Identifier: GPL-2.0-or-later
; Every privileged or sensitive operation a 64-bit kernel here performs, one macro each. A kernel
; written with these has its whole need of ring 0 in one place: a paravirtual build of the same
; source includes pv.s after this file, where each of them is a hypercall.

; In 32-bit code, on the way to long mode: values are in EAX (EDX:EAX for MSRs), EBX and ECX may go.
.macro LOAD_GDT32 pointer
    lgdt [\pointer]
.endm
.macro READ_CR32 number
    mov eax, cr\number
.endm
.macro WRITE_CR32 number
    mov cr\number, eax
.endm
.macro READ_MSR32 number
    mov ecx, \number
    rdmsr
.endm
.macro WRITE_MSR32 number
    mov ecx, \number
    wrmsr
.endm
.macro FAR_JUMP32 code, target
    jmpf \code, \target
.endm

; In 64-bit code.
.macro LOAD_SEGMENTS data       ; every data segment; clobbers EAX
    mov eax, \data
    mov ds, ax
    mov es, ax
    mov fs, ax
    mov gs, ax
    mov ss, ax
.endm
.macro ENABLE_SYSCALL           ; EFER.SCE; clobbers RAX RCX RDX
    mov ecx, MSR_EFER
    rdmsr
    or eax, EFER_SCE
    wrmsr
.endm
.macro HLT
    hlt
.endm
.macro IN_AL                    ; port DX; keeps every other register
    in al, dx
.endm
.macro OUT_AL
    out dx, al
.endm

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
