; SPDX-License-Identifier: GPL-2.0-or-later
; sensitive: a 64-bit kernel that executes every sensitive instruction in kernel and in user mode
; and prints what it saw: one line `ROW.case 64-bit mode: result` each. ROW is the row of the
; table in translator/sensitive.py. Run natively (QEMU) the lines are the truth; a kernel one ring
; down that is not translated prints others (POPF that loses IF, CS with a ring in it, a GDT that
; is not its own). Always ends with status 0: comparing is the tests' job.
;
; Reading order: harness.s (how a case runs), kernel.s (its tables), cases.s, cases64.s.
.include "../lib/boot.s"
.include "../lib/longmode.s"
.equ HARNESS_BITS, 64
.equ UCODE, 0x28 + 3
.equ USER_CODE_FLAGS, 0xa
.equ GATE_SIZE, 16
.equ GATE_IST, 1                ; every gate switches to IST1: a case may leave any stack
.equ PTE_SIZE, 8
.equ ROOT_TABLE, page_tables
.equ CR4_VALUE, CR4_PAE
.equ MSR_STAR, 0xc0000081
.equ MSR_LSTAR, 0xc0000082
.equ MSR_FMASK, 0xc0000084
.equ MSR_FS_BASE, 0xc0000100
.equ MSR_GS_BASE, 0xc0000101
.equ MSR_KERNEL_GS_BASE, 0xc0000102
.include "width64.s"
.include "../lib/wide64.s"
.define XMOVS movsq

; The frame for IRETQ into a case. XSI = selectors and flags, XBX = its record.
.macro ENTER_FRAME
    mov eax, [XSI + 8]
    push XAX
    push user_stack_top
    mov eax, [XSI + 12]
    push XAX
    mov eax, [XSI]
    push XAX
    mov eax, [XBX + R_CODE]
    push XAX
.endm
.macro HARNESS_IRET
    iretq
.endm
.macro RESTORE_MORE
    SET_MSR MSR_EFER, EFER_SCE + EFER_LME + EFER_LMA
    mov ecx, MSR_STAR
    xor eax, eax
    mov edx, UCODE32 << 16 | KCODE
    wrmsr
    SET_MSR MSR_LSTAR, syscall_target
    SET_MSR MSR_FMASK, FL_IF + FL_TF
    SET_MSR MSR_FS_BASE, 0
    SET_MSR MSR_GS_BASE, 0
    SET_MSR MSR_KERNEL_GS_BASE, 0x1000
    xor eax, eax
    mov cr8, rax
.endm

.section text
.bits 64
.include "../lib/uart.s"
.bits 32
start:
    cli
    mov esp, stack_top
    ENTER_LONG_MODE page_tables, 1, gdt_pointer, KCODE, KDATA, main
.bits 64
main:
    mov rsp, stack_top
    call uart_init
    call fill_idt
    call fill_page_table
    mov qword ptr [page_tables + 0x2000], low_table + PTE_P + PTE_W + PTE_U
    mov rax, page_tables
    mov cr3, rax
    call detect
    call init_timer
    jmp run_cases

; SYSCALL came: CS, SS, RCX against the return address (RDX), R11's IF and RF.
syscall_target:
    mov eax, cs
    mov ebx, ss
    sub rcx, rdx
    mov edx, r11d
    and edx, FL_IF + FL_CF
    int VEC_DONE

.include "harness.s"
.include "kernel.s"
.section user
.bits 64
WAIT_FOR_TIMER wait_flat
.include "cases.s"
.include "cases64.s"
.section bss
.align 4096
page_tables: .space 0x3000
