; SPDX-License-Identifier: GPL-2.0-or-later
; hello: enters long mode by itself, prints one line that says which ring the kernel sees in its
; CS, and powers off with status 0. Under `bt` the line says ring 0; under `trap`, where nobody
; hides the truth, it says ring 1.
.include "../lib/boot.s"
.include "../lib/longmode.s"
.include "../lib/wide64.s"
.bits 64
.include "../lib/uart.s"
.bits 32

.equ CODE, 0x08
.equ DATA, 0x10

start:
    cli
    mov esp, stack_top
    ENTER_LONG_MODE page_tables, 1, gdt_pointer, CODE, DATA, main

.bits 64
main:
    mov rsp, stack_top
    call uart_init
    PRINT "Hello from ring "
    mov eax, cs
    and eax, 3
    call putdec
    PRINT " (or so it thinks), CS="
    mov eax, cs
    call puthex
    PRINT " CPL="
    mov eax, cs
    and eax, 3
    call putdec
    PRINTLN ", 64-bit long mode"
    mov al, 0
    jmp power_off

.section data
.align 8
gdt:
.quad 0
DESCRIPTOR 0, 0xfffff, 0x9b, 0xa        ; 0x08: 64-bit code
DESCRIPTOR 0, 0xfffff, 0x93, 0xc        ; 0x10: data
gdt_end:
gdt_pointer:
.word gdt_end - gdt - 1
.quad gdt

.section bss
page_tables: .space 0x3000
.space 0x1000
stack_top:
