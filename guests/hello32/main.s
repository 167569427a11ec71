; SPDX-License-Identifier: GPL-2.0-or-later
; hello32: a 32-bit kernel. Prints with paging off, builds two-level page tables that map the
; first 4 MiB one to one and once more at 0xc0000000, turns paging on, jumps to the high mapping
; and prints again from there. Powers off with status 0, or 1 when the two mappings disagree.
.include "../lib/boot.s"
.include "../lib/wide32.s"
.include "../lib/uart.s"

.equ CODE, 0x08
.equ DATA, 0x10
.equ HIGH, 0xc0000000

start:
    cli
    mov esp, stack_top
    lgdt [gdt_pointer]
    jmpf CODE, reload
reload:
    mov eax, DATA
    mov ds, eax
    mov es, eax
    mov fs, eax
    mov gs, eax
    mov ss, eax
    call uart_init
    PRINT "Hello from 32-bit protected mode, paging off, CS="
    mov eax, cs
    call puthex
    PRINT " CR0.PG="
    call print_pg

    mov edi, page_table         ; 1024 4 KiB pages: the first 4 MiB
    mov eax, PTE_P + PTE_W
    mov ecx, 1024
@fill:
    mov [edi], eax
    add eax, 0x1000
    add edi, 4
    dec ecx
    jnz @fill
    mov eax, page_table + PTE_P + PTE_W
    mov [page_directory], eax
    mov [page_directory + (HIGH >> 22) * 4], eax
    mov eax, page_directory
    mov cr3, eax
    mov eax, cr0
    or eax, CR0_PG + CR0_WP
    mov cr0, eax
    mov eax, high + HIGH
    jmp eax
high:
    PRINT "Hello again, paging on, running at "
    call @here
@here:
    pop eax
    and eax, 0xff000000
    call puthex
    PRINT "..., CR0.PG="
    call print_pg
    mov dword ptr [cell], 0x12345678
    mov eax, [cell + HIGH]      ; the same byte of RAM through the other mapping
    cmp eax, 0x12345678
    mov al, 1
    jne power_off
    PRINTLN "Both mappings show the same memory"
    mov al, 0
    jmp power_off

; Print CR0.PG as 0 or 1 and end the line.
print_pg:
    mov eax, cr0
    shr eax, 31
    call putdec
    PRINTLN ""
    ret

.section data
.align 8
gdt:
.quad 0
DESCRIPTOR 0, 0xfffff, 0x9b, 0xc        ; 0x08: 32-bit code
DESCRIPTOR 0, 0xfffff, 0x93, 0xc        ; 0x10: data
gdt_end:
gdt_pointer:
.word gdt_end - gdt - 1
.long gdt
cell: .long 0

.section bss
page_directory: .space 0x1000
page_table: .space 0x1000
.space 0x1000
stack_top:
