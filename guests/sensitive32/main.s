; SPDX-License-Identifier: GPL-2.0-or-later
; sensitive32: the cases of `sensitive` in a 32-bit kernel, once in 32-bit code and once in 16-bit
; protected-mode code. Prints one line `ROW.case BITS-bit mode: result` each; always ends with
; status 0. See ../sensitive/main.s.
.include "../lib/boot.s"
.equ HARNESS_BITS, 32
.equ UCODE, 0x18 + 3
.equ USER_CODE_FLAGS, 0xc
.equ GATE_SIZE, 8
.equ GATE_IST, 0
.equ PTE_SIZE, 4
.equ ROOT_TABLE, page_directory
.equ CR4_VALUE, 0
.include "../sensitive/width32.s"
.include "../lib/wide32.s"
.define XMOVS movsd

; The frame for IRETD into a case. XSI = selectors and flags, XBX = its record. Within ring 0 IRET
; does not change the stack, so that is done here.
.macro ENTER_FRAME
    cmp dword ptr [mode], K
    je @kernel\@
    push dword ptr [XSI + 8]
    push user_stack_top
    jmp @rest\@
@kernel\@:
    mov esp, user_stack_top
@rest\@:
    push dword ptr [XSI + 12]
    push dword ptr [XSI]
    mov eax, [XBX + R_CODE]
    cmp dword ptr [XBX + R_BITS], 16
    jne @flat\@
    sub eax, user_start
@flat\@:
    push eax
.endm
.macro HARNESS_IRET
    iretd
.endm
.macro RESTORE_MORE
.endm

.section text
.bits 32
.include "../lib/uart.s"
start:
    cli
    lgdt [gdt_pointer]
    jmpf KCODE, main
main:
    mov eax, KDATA
    mov ds, eax
    mov es, eax
    mov fs, eax
    mov gs, eax
    mov ss, eax
    mov esp, stack_top
    call uart_init
    call fill_idt
    call fill_page_table
    mov dword ptr [page_directory], low_table + PTE_P + PTE_W + PTE_U
    mov eax, page_directory
    mov cr3, eax
    mov eax, CR0_VALUE
    mov cr0, eax
    call detect
    call init_timer
    jmp run_cases

.include "../sensitive/harness.s"
.include "../sensitive/kernel.s"
.section user
.bits 32
WAIT_FOR_TIMER wait_flat
.bits 16
WAIT_FOR_TIMER wait_16
.include "../sensitive/cases.s"
.include "../sensitive/width16.s"
.include "../sensitive/cases.s"
.section bss
.align 4096
page_directory: .space 0x1000
