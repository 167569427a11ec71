; SPDX-License-Identifier: GPL-2.0-or-later
; The operations of priv.s for Ring1's paravirtual interface (docs/pv-abi.md): hypercalls, or plain
; loads and stores on the vCPU page. Include it after boot.s, whose macros it replaces, and once:
; it holds the note that declares the interface. Like the instructions, these keep every register
; but those that the comments in priv.s give away.

.equ VCPU, -0x1a9000            ; 32-bit code reaches it at the low half of the same address
.equ VCPU_IF, VCPU + 0x00
.equ VCPU_SAVE0, VCPU + 0x10
.equ VCPU_CR2, VCPU + 0x50
.equ VCPU_CR3, VCPU + 0x58

.equ HC_SET_GDT, 2
.equ HC_SET_IDT, 3
.equ HC_SET_TSS, 5
.equ HC_READ_CR, 7
.equ HC_WRITE_CR, 8
.equ HC_INVLPG, 9
.equ HC_IRET, 11
.equ HC_SYSRET, 12
.equ HC_HALT, 14
.equ HC_IN, 15
.equ HC_OUT, 16
.equ HC_RDMSR, 17
.equ HC_WRMSR, 18
.equ HC_SET_SEGMENT, 21
.equ HC_SWAPGS, 23

.section note
.long 6, 24, 1                  ; name size, descriptor size, type: this kernel speaks the interface
.ascii "Ring1\0\0\0"
.long 1, 0                      ; version, flags
.quad 0                         ; no hypercall page: INT 0x82 is used directly
.quad 0                         ; the vCPU page where it is
.section text

.macro HYPERCALL number
    mov eax, \number
    int 0x82
.endm

; 32-bit code: arguments in EBX ECX EDX.
.macro LOAD_GDT32 pointer
    mov ebx, \pointer
    HYPERCALL HC_SET_GDT
.endm
.macro READ_CR32 number
    mov ebx, \number
    HYPERCALL HC_READ_CR
    mov eax, edx
.endm
.macro WRITE_CR32 number
    mov ebx, \number
    mov ecx, eax
    HYPERCALL HC_WRITE_CR
.endm
.macro READ_MSR32 number
    mov ebx, \number
    HYPERCALL HC_RDMSR
    mov eax, edx
    mov edx, ecx
.endm
.macro WRITE_MSR32 number
    mov ebx, \number
    mov ecx, eax
    HYPERCALL HC_WRMSR
.endm
.macro FAR_JUMP32 code, target
    pushfd
    push \code
    push \target
    push eax
    HYPERCALL HC_IRET
.endm

; 64-bit code: arguments in RDI RSI RDX.
.macro SAVED_HYPERCALL number, first=rdi, second=rsi   ; keeps all but RAX
    push rsi
    push rdi
    push \first
    push \second
    pop rsi
    pop rdi
    HYPERCALL \number
    pop rdi
    pop rsi
.endm
.macro SEGMENT number
    mov edi, \number
    HYPERCALL HC_SET_SEGMENT
.endm
.macro LOAD_SEGMENTS data
    mov esi, \data
    SEGMENT 0
    SEGMENT 2
    SEGMENT 3
    SEGMENT 4
    SEGMENT 5
.endm
.macro ENABLE_SYSCALL
    mov edi, MSR_EFER
    HYPERCALL HC_RDMSR
    or edx, EFER_SCE
    mov rsi, rdx
    HYPERCALL HC_WRMSR
.endm
.macro CLI
    mov dword ptr [VCPU_IF], 0
.endm
.macro HLT
    push rax
    SAVED_HYPERCALL HC_HALT, 0
    pop rax
.endm
.macro STI_HLT                  ; one hypercall, so that no interrupt can come between
    push rax
    SAVED_HYPERCALL HC_HALT, 1
    pop rax
.endm
.macro IRETQ
    push rax
    HYPERCALL HC_IRET
.endm
.macro SYSRETQ                  ; RSP is the user's: RAX waits in the vCPU page
    mov [VCPU_SAVE0], rax
    HYPERCALL HC_SYSRET
.endm
.macro SWAPGS
    mov [VCPU_SAVE0], rax
    HYPERCALL HC_SWAPGS
    mov rax, [VCPU_SAVE0]
.endm
.macro READ_CR2 reg
    mov \reg, [VCPU_CR2]
.endm
.macro READ_CR3 reg
    mov \reg, [VCPU_CR3]
.endm
.macro LOAD_CR3 reg
    push rax
    SAVED_HYPERCALL HC_WRITE_CR, 3, \reg
    pop rax
.endm
.macro LOAD_GDT pointer
    mov rdi, \pointer
    HYPERCALL HC_SET_GDT
.endm
.macro LOAD_IDT pointer
    mov rdi, \pointer
    HYPERCALL HC_SET_IDT
.endm
.macro LOAD_TR selector
    mov edi, \selector
    HYPERCALL HC_SET_TSS
.endm
.macro FLUSH_PAGE reg
    push rax
    SAVED_HYPERCALL HC_INVLPG, \reg
    pop rax
.endm
.macro WRITE_MSR number, value
    mov edi, \number
    mov rsi, \value
    HYPERCALL HC_WRMSR
.endm
.macro IN_AL
    push rdx
    movzx edx, dx
    SAVED_HYPERCALL HC_IN, rdx, 1
    mov eax, edx
    pop rdx
.endm
.macro OUT_AL
    push rax
    push rdx
    push rdx
    movzx edx, al
    pop rax
    movzx eax, ax
    SAVED_HYPERCALL HC_OUT, rax, 1
    pop rdx
    pop rax
.endm
.macro OUTB port, value
    push rdx
    mov edx, \value
    SAVED_HYPERCALL HC_OUT, \port, 1
    pop rdx
.endm
