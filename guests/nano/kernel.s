; SPDX-License-Identifier: GPL-2.0-or-later
; The seven loops of guests/nano, for both builds.
;
; The multiboot command line chooses: words that are names run just these (no name: all seven), a
; decimal number is the operations in a pass. Each of the PASSES passes prints a line; the first
; also pays for translation and others wait for the host, so a reader takes the fastest.
;
;   syscall   user mode: SYSCALL to a handler that is SYSRET alone
;   in        IN from port 0x80, where no device is
;   cr8wr     MOV to CR8, the task priority
;   callret   CALL of a function that is RET alone
;   pgfault   a load from a page that is not present; the handler skips it and returns
;   divzero   a division by zero; the handler skips it and returns
;   ptemod    a store to a page-table entry of the address space in use
;   pteflush  not of the paper, and run by name only: the same store, INVLPG and a load through the
;             entry, which is when a VMM that traces no page tables has to look
;
; UNROLL copies of an operation stand in a loop, so that the loop itself is no part of the result.
.include "../lib/longmode.s"
.include "../lib/wide64.s"
.bits 64
.include "../lib/uart.s"
.bits 32

.equ KCODE, 0x08
.equ KDATA, 0x10
.equ UDATA, 0x20 + 3            ; SYSRET wants user data, then user code, after its base (0x18)
.equ UCODE, 0x28 + 3
.equ TSS_SEL, 0x30
.equ MSR_STAR, 0xc0000081
.equ MSR_LSTAR, 0xc0000082
.equ MSR_FMASK, 0xc0000084

.equ PASSES, 32
.equ UNROLL, 8
.equ OPERATIONS, 4096           ; in a pass, unless the command line says otherwise
.equ MAX_OPERATIONS, 10000000
.equ BACK, 0x81                 ; the interrupt by which user code ends

; The last 2 MiB that the page tables map are remapped in pages of 4 KiB.
.equ SMALL, 0x3fe00000
.equ DATA_PAGE, SMALL           ; the page whose entry ptemod changes
.equ HOLE, SMALL + 0x1000       ; not present
.equ USER, SMALL + 0x2000       ; the code section user

.equ MB_FLAGS, 0                ; multiboot information (0.6.96, section 3.3)
.equ MB_CMDLINE, 16
.equ MB_HAS_CMDLINE, 1 << 2

; A row of the table: name, number, whether it runs without being named.
.equ ROW_SIZE, 24
.macro ROW name, number, plain
.quad @name\@, \number, \plain
.section strings
@name\@: .asciz \name
.section data
.endm

.macro START
    READ_TSC
    mov r15, rax
.endm
.macro STOP                     ; RAX = ticks since START
    READ_TSC
    sub rax, r15
.endm

; A 64-bit interrupt gate for \vector with DPL \dpl. Clobbers RAX.
.macro GATE vector, handler, dpl
    mov rax, \handler
    mov [idt + \vector * 16], ax
    mov word ptr [idt + \vector * 16 + 2], KCODE
    mov word ptr [idt + \vector * 16 + 4], 0x8e00 + (\dpl << 13)
    shr rax, 16
    mov [idt + \vector * 16 + 6], ax
.endm

start:
    CLI
    mov esp, stack_top
    mov [information], ebx
    ENTER_LONG_MODE page_tables, 1, gdt_pointer, KCODE, KDATA, main
.bits 64

main:
    mov rsp, stack_top
    call uart_init
    call set_up_tables
    call set_up_pages
    call read_command_line
    mov rbx, table
@row:
    mov rax, [rbx + 16]         ; what runs: the rows named, or the plain ones when none was
    cmp dword ptr [named], 0
    je @chosen
    mov rcx, rbx
    sub rcx, table
    mov rax, [wanted + rcx]
@chosen:
    test rax, rax
    jz @next
    call run_row
@next:
    add rbx, ROW_SIZE
    cmp rbx, table_end
    jb @row
    mov al, 0
    jmp power_off

; RBX = row: all its passes. The functions may use any register but RBX, RBP, R14 and RSP; they get
; how often to go round in R12 and return ticks in RAX.
run_row:
    mov ebp, PASSES
@pass:
    mov r12d, [rounds]
    call run_pass
    mov r14, rax
    mov rsi, [rbx]
    call puts
    PRINT " "
    mov eax, [rounds]
    imul eax, eax, UNROLL
    call putdec
    PRINT " "
    mov rax, r14
    call putdec
    PRINTLN ""
    dec ebp
    jnz @pass
    ret

; To the function of row RBX. Not by a pointer: `bt patch` follows calls and jumps to find code.
.macro WHEN number, function
    cmp eax, \number
    je \function
.endm
run_pass:
    mov eax, [rbx + 8]
    WHEN 0, bench_syscall
    WHEN 1, bench_in
    WHEN 2, bench_cr8wr
    WHEN 3, bench_callret
    WHEN 4, bench_pgfault
    WHEN 5, bench_divzero
    WHEN 6, bench_ptemod
    jmp bench_pteflush

; ---- the seven ----------------------------------------------------------------------------
bench_syscall:
    mov [kernel_rsp], rsp
    START
    push UDATA
    push USER                   ; user code has no stack: nothing it does needs one
    push 2
    push UCODE
    push USER
    IRETQ
user_is_done:
    mov rsp, [kernel_rsp]
    STOP
    ret
syscall_entry:
    SYSRETQ

bench_in:
    START
    mov edx, 0x80
@round:
.rept UNROLL
    IN_AL
    nop dword ptr [rax + 8]     ; room to rewrite: a translator may need five bytes for one
.endr
    dec r12d
    jnz @round
    STOP
    ret

bench_cr8wr:
    START
    xor ecx, ecx
@round:
.rept UNROLL
    LOAD_CR8 rcx
.endr
    dec r12d
    jnz @round
    STOP
    ret

bench_callret:
    START
@round:
.rept UNROLL
    call just_return
.endr
    dec r12d
    jnz @round
    STOP
    ret
just_return:
    ret

.equ FAULT_SIZE, 2              ; bytes of the instruction that faults, in both of these
bench_pgfault:
    START
    mov ecx, HOLE
@round:
.rept UNROLL
    mov eax, [rcx]
.endr
    dec r12d
    jnz @round
    STOP
    ret
page_fault:
    add rsp, 8                  ; the error code
divide_error:
    add qword ptr [rsp], FAULT_SIZE
    IRETQ

bench_divzero:
    START
    xor ecx, ecx
@round:
.rept UNROLL
    div ecx
.endr
    dec r12d
    jnz @round
    STOP
    ret

bench_ptemod:
    START
    mov ecx, data_page + PTE_P + PTE_W
    mov edx, data_page + PTE_P
    mov edi, page_table
@round:
.rept UNROLL / 2
    mov [rdi], rdx
    mov [rdi], rcx
.endr
    dec r12d
    jnz @round
    STOP
    ret

bench_pteflush:
    START
    mov ecx, data_page + PTE_P + PTE_W
    mov edx, data_page + PTE_P
    mov edi, page_table
    mov esi, DATA_PAGE
@round:
.rept UNROLL / 2
    mov [rdi], rdx
    FLUSH_PAGE rsi
    mov r8, [rsi]
    mov [rdi], rcx
    FLUSH_PAGE rsi
    mov r8, [rsi]
.endr
    dec r12d
    jnz @round
    STOP
    ret

; ---- set-up -------------------------------------------------------------------------------
set_up_tables:
    LOAD_GDT gdt_pointer
    GATE 0, divide_error, 0
    GATE 14, page_fault, 0
    GATE BACK, user_is_done, 3
    LOAD_IDT idt_pointer
    LOAD_TR TSS_SEL
    ; SYSCALL loads CS 0x08, SS 0x10; SYSRETQ loads CS 0x18+16|3, SS 0x18+8|3.
    WRITE_MSR MSR_STAR, (0x18 + 3) << 48 | KCODE << 32
    WRITE_MSR MSR_LSTAR, syscall_entry
    WRITE_MSR MSR_FMASK, FL_IF + FL_TF
    ENABLE_SYSCALL
    ret

set_up_pages:
    mov eax, data_page + PTE_P + PTE_W
    mov [page_table], rax
    mov eax, user_start + PTE_P + PTE_U
    mov [page_table + ((USER - SMALL) >> 12) * 8], rax
    mov eax, page_table + PTE_P + PTE_W + PTE_U
    mov [page_tables + 0x2000 + 511 * 8], rax
    mov eax, SMALL
    FLUSH_PAGE rax              ; it was part of a large page
    ret

; Marks the rows that the command line names; sets the rounds if it has a number.
read_command_line:
    mov dword ptr [rounds], OPERATIONS / UNROLL
    mov ecx, [information]
    test dword ptr [rcx + MB_FLAGS], MB_HAS_CMDLINE
    jz @end
    mov esi, [rcx + MB_CMDLINE]
@word:
    mov al, [rsi]
    test al, al
    jz @end
    cmp al, ' '
    jne @in_word
    inc rsi
    jmp @word
@in_word:
    call match_row
    call match_number
@skip:                          ; to the end of the word
    mov al, [rsi]
    test al, al
    jz @end
    cmp al, ' '
    je @word
    inc rsi
    jmp @skip
@end:
    ret

; RSI = a word. If a row has that name, mark it. Keeps RSI.
match_row:
    mov rbx, table
@row:
    mov rdi, [rbx]
    mov rdx, rsi
@letter:
    mov al, [rdx]
    mov cl, [rdi]
    test cl, cl
    jz @ends
    cmp al, cl
    jne @next
    inc rdx
    inc rdi
    jmp @letter
@ends:
    test al, al
    jz @found
    cmp al, ' '
    je @found
@next:
    add rbx, ROW_SIZE
    cmp rbx, table_end
    jb @row
    ret
@found:
    sub rbx, table
    mov qword ptr [wanted + rbx], 1
    mov dword ptr [named], 1
    ret

; RSI = a word. If it is a decimal number from UNROLL to MAX_OPERATIONS, make it the operations in
; a pass, down to a multiple of UNROLL. Keeps RSI.
match_number:
    mov rdx, rsi
    xor eax, eax
@digit:
    movzx ecx, byte ptr [rdx]
    test ecx, ecx
    jz @ends
    cmp ecx, ' '
    je @ends
    sub ecx, '0'
    cmp ecx, 9
    ja @no
    imul eax, eax, 10
    add eax, ecx
    cmp eax, MAX_OPERATIONS
    ja @no
    inc rdx
    jmp @digit
@ends:
    shr eax, 3                  ; by UNROLL
    jz @no
    mov [rounds], eax
@no:
    ret

; ---- user code: runs at USER, so only relative references ---------------------------------
.section user
user_loop:
.rept UNROLL
    syscall
.endr
    dec r12d
    jnz user_loop
    int BACK

.section data
.align 16
gdt:
.quad 0
DESCRIPTOR 0, 0xfffff, 0x9b, 0xa        ; 0x08: kernel code
DESCRIPTOR 0, 0xfffff, 0x93, 0xc        ; 0x10: kernel data
.quad 0                                 ; 0x18: base of SYSRET's pair (32-bit user code: none)
DESCRIPTOR 0, 0xfffff, 0xf3, 0xc        ; 0x20: user data
DESCRIPTOR 0, 0xfffff, 0xfb, 0xa        ; 0x28: user code
DESCRIPTOR tss, 103, 0x89, 0            ; 0x30: TSS, 16 bytes
.quad 0
gdt_end:
gdt_pointer:
.word gdt_end - gdt - 1
.quad gdt
idt_pointer:
.word (BACK + 1) * 16 - 1
.quad idt
.align 16
tss: .space 4
.quad interrupt_stack_top               ; RSP0
.space 90
.word 104                               ; no I/O bitmap
.align 8
table:
ROW "syscall", 0, 1
ROW "in", 1, 1
ROW "cr8wr", 2, 1
ROW "callret", 3, 1
ROW "pgfault", 4, 1
ROW "divzero", 5, 1
ROW "ptemod", 6, 1
ROW "pteflush", 7, 0
table_end:
kernel_rsp: .quad 0
information: .long 0                    ; GPA of what the loader left
rounds: .long 0
named: .long 0                          ; 1: the command line named a row

.section bss
page_tables: .space 0x3000
page_table: .space 0x1000
data_page: .space 0x1000
idt: .space 0x1000
wanted: .space 0x1000                   ; nonzero at the same offset as a row: it was named
.space 0x1000
interrupt_stack_top:
.space 0x1000
stack_top:
