; SPDX-License-Identifier: GPL-2.0-or-later
; The kernel and the four tasks of guests/tasks, for both builds: main.s says what it shows.
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
.equ MSR_KERNEL_GS_BASE, 0xc0000102

.equ USER_CODE, 0x8000000000    ; PML4 slot 1: the user half of an address space
.equ USER_DATA, 0x8000010000    ; demand-paged up to USER_STACK
.equ USER_STACK, 0x8000080000
.equ USER_CLOCK, 0x8000080000   ; one read-only page with the tick count
.equ TICKS_A_STEP, 2
.equ STEPS, 4
.equ TASKS, 4

; A task: the trap frame (what an entry from user mode pushes), then its bookkeeping.
.equ T_RAX, 14 * 8
.equ T_RSI, 10 * 8
.equ T_RDI, 9 * 8
.equ T_RCX, 12 * 8
.equ T_R11, 4 * 8
.equ T_VECTOR, 15 * 8
.equ T_ERROR, 16 * 8
.equ T_RIP, 17 * 8
.equ T_CS, 18 * 8
.equ T_RFLAGS, 19 * 8
.equ T_RSP, 20 * 8
.equ T_SS, 21 * 8
.equ T_FRAME_END, 22 * 8
.equ T_CR3, 22 * 8
.equ T_STATE, 23 * 8
.equ T_WAKE, 24 * 8             ; the tick a sleeper waits for
.equ T_NAME, 25 * 8             ; its letter
.equ T_PT, 26 * 8               ; its page table for the user area
.equ T_SIZE, 28 * 8             ; a multiple of 16: the CPU aligns RSP0 down to that

.equ READY, 1
.equ ASLEEP, 2
.equ WAITING, 3                 ; for its turn to print
.equ DEAD, 4
.equ BY_SYSCALL, 0x100          ; T_VECTOR of a frame that SYSCALL made

; System calls, number in RAX.
.equ SYS_EXIT, 0
.equ SYS_PRINT, 1               ; RDI = NUL-terminated string; waits for the task's turn
.equ SYS_SLEEP, 2               ; RDI = ticks

; Pop what the entries pushed, up to the vector.
.macro POP_REGISTERS
    pop r15
    pop r14
    pop r13
    pop r12
    pop r11
    pop r10
    pop r9
    pop r8
    pop rbp
    pop rdi
    pop rsi
    pop rdx
    pop rcx
    pop rbx
    pop rax
.endm
.macro PUSH_REGISTERS
    push rax
    push rbx
    push rcx
    push rdx
    push rsi
    push rdi
    push rbp
    push r8
    push r9
    push r10
    push r11
    push r12
    push r13
    push r14
    push r15
.endm

; The entry of one vector, 16 bytes: an error code where the CPU pushes none, then the vector.
.macro STUB number
.align 16
.if ((\number) != 8) & ((\number) != 17)
.if (\number) < 10
    push 0
.endif
.if (\number) > 14
    push 0
.endif
.endif
    push \number
    jmp common_entry
.endm

; A line "text yes", or "no" and a failed run, by whether the counter is above zero.
.macro CHECK counter, text
    PRINT \text
    mov rax, [\counter]
    call print_check
.endm

start:
    CLI
    mov esp, stack_top
    ENTER_LONG_MODE page_tables, 1, gdt_pointer, KCODE, KDATA, main
.bits 64

main:
    mov rsp, stack_top
    call uart_init
    call set_up_tables
    call set_up_timer
    PRINTLN "tasks: four user tasks, 100 Hz timer"
    mov ebx, 0
@create:
    call create_task
    inc ebx
    cmp ebx, TASKS
    jb @create
    jmp schedule

; ---- descriptor tables and system-call registers ------------------------------------------
set_up_tables:
    LOAD_GDT gdt_pointer
    mov rdi, idt                ; every vector goes to its 16-byte stub
    mov rax, vector_stubs
    mov ecx, 256
@gate:
    mov [rdi], ax
    mov word ptr [rdi + 2], KCODE
    mov word ptr [rdi + 4], 0x8e00      ; present, DPL 0, interrupt gate
    mov rdx, rax
    shr rdx, 16
    mov [rdi + 6], dx
    mov dword ptr [rdi + 8], 0
    mov dword ptr [rdi + 12], 0
    add rax, 16
    add rdi, 16
    dec ecx
    jnz @gate
    mov byte ptr [idt + 0x80 * 16 + 5], 0xee    ; int 0x80: DPL 3
    LOAD_IDT idt_pointer
    LOAD_TR TSS_SEL
    ; SYSCALL loads CS 0x08, SS 0x10; SYSRETQ loads CS 0x18+16|3, SS 0x18+8|3.
    WRITE_MSR MSR_STAR, (0x18 + 3) << 48 | KCODE << 32
    WRITE_MSR MSR_LSTAR, syscall_entry
    WRITE_MSR MSR_FMASK, FL_IF + FL_TF + 0x400
    WRITE_MSR MSR_KERNEL_GS_BASE, per_cpu
    ENABLE_SYSCALL
    ret

; 8259 pair at vectors 0x20 and 0x28, only the timer unmasked; 8254 channel 0 at 100 Hz.
set_up_timer:
    OUTB 0x20, 0x11
    OUTB 0xa0, 0x11
    OUTB 0x21, 0x20
    OUTB 0xa1, 0x28
    OUTB 0x21, 4
    OUTB 0xa1, 2
    OUTB 0x21, 1
    OUTB 0xa1, 1
    OUTB 0x21, 0xfe
    OUTB 0xa1, 0xff
    OUTB 0x43, 0x34             ; channel 0, low then high byte, mode 2
    OUTB 0x40, 11932 & 0xff
    OUTB 0x40, 11932 >> 8
    ret

; ---- tasks --------------------------------------------------------------------------------
; RBX = index. Builds its address space: the kernel's half is shared, the user half has a page
; table of its own with the code and the clock page present and everything else to be faulted in.
create_task:
    imul rdi, rbx, T_SIZE
    add rdi, tasks
    call new_page
    mov r8, rax                 ; PML4
    mov [rdi + T_CR3], rax
    mov rax, [page_tables]
    mov [r8], rax
    call new_page
    mov r9, rax                 ; PDPT
    or rax, PTE_P + PTE_W + PTE_U
    mov [r8 + 8], rax
    call new_page
    mov r8, rax                 ; page directory
    or rax, PTE_P + PTE_W + PTE_U
    mov [r9], rax
    call new_page
    mov [rdi + T_PT], rax       ; page table
    mov r9, rax
    or rax, PTE_P + PTE_W + PTE_U
    mov [r8], rax
    mov rax, user_start + PTE_P + PTE_U
    mov ecx, (user_end - user_start + 0xfff) >> 12
    mov rdx, r9
@code:
    mov [rdx], rax
    add rax, 0x1000
    add rdx, 8
    dec ecx
    jnz @code
    mov rax, clock_page + PTE_P + PTE_U
    mov [r9 + ((USER_CLOCK >> 12) & 511) * 8], rax

    mov rax, [entries + rbx * 8]
    mov [rdi + T_RIP], rax
    mov qword ptr [rdi + T_CS], UCODE
    mov qword ptr [rdi + T_SS], UDATA
    mov qword ptr [rdi + T_RFLAGS], FL_IF + 2
    mov rax, USER_STACK
    mov [rdi + T_RSP], rax
    mov qword ptr [rdi + T_STATE], READY
    lea rax, [rbx + 'A']
    mov [rdi + T_NAME], rax
    ret

; A zeroed page of the pool -> RAX. Keeps every other register.
new_page:
    push rcx
    push rdi
    mov rdi, [pool_next]
    cmp rdi, pool_end
    jae @empty
    push rdi
    mov ecx, 512
    xor eax, eax
    rep stosq
    mov [pool_next], rdi
    pop rax
    pop rdi
    pop rcx
    ret
@empty:
    PRINTLN "out of pages"
    mov al, 1
    jmp power_off

; Round robin from the task after the current one; idle while none can run; done when all are dead.
schedule:
    mov rsp, stack_top
    mov rbx, [current]
    mov ecx, TASKS
    xor edx, edx                ; becomes 1 when some task lives
@look:
    add rbx, T_SIZE
    cmp rbx, tasks + TASKS * T_SIZE
    jb @in_range
    mov rbx, tasks
@in_range:
    mov rax, [rbx + T_STATE]
    cmp eax, DEAD
    je @next
    mov edx, 1
    cmp eax, READY
    je resume
    cmp eax, WAITING
    je @waiting
    mov rax, [clock_page]       ; asleep
    cmp rax, [rbx + T_WAKE]
    jae @wake
    jmp @next
@waiting:
    cmp [turn], rbx
    jne @next
@wake:
    mov qword ptr [rbx + T_STATE], READY
    jmp resume
@next:
    dec ecx
    jnz @look
    test edx, edx
    jz all_done
    inc qword ptr [idle_halts]
    STI_HLT
    CLI
    jmp schedule

; RBX = task: go on with it.
resume:
    mov [current], rbx
    lea rax, [rbx + T_FRAME_END]
    mov [tss + 4], rax          ; RSP0
    mov [per_cpu], rax
    mov rax, [rbx + T_CR3]
    READ_CR3 rdx
    cmp rax, rdx
    je @same
    LOAD_CR3 rax
@same:
    mov rsp, rbx
    mov rax, [rbx + T_VECTOR]
    cmp rax, BY_SYSCALL
    je @sysret
    POP_REGISTERS
    add rsp, 16
    IRETQ
@sysret:
    POP_REGISTERS
    mov rcx, [rsp + T_RIP - T_VECTOR]
    mov r11, [rsp + T_RFLAGS - T_VECTOR]
    mov rsp, [rsp + T_RSP - T_VECTOR]
    SYSRETQ

all_done:
    PRINT "pages faulted in: "
    mov eax, [demand_pages]
    call putdec
    PRINTLN ""
    PRINT "tasks killed: "
    mov eax, [killed]
    call putdec
    PRINTLN ""
    CHECK preemptions, "user code was preempted: "
    CHECK idle_halts, "the idle loop halted: "
    CHECK syscalls, "syscall was used: "
    CHECK int80s, "int 0x80 was used: "
    mov al, [failed]
    jmp power_off

print_check:
    test rax, rax
    jz @no
    PRINTLN "yes"
    ret
@no:
    PRINTLN "no"
    mov byte ptr [failed], 1
    ret

; ---- entries ------------------------------------------------------------------------------
; The stack has SS, RSP, RFLAGS, CS, RIP, the error code and the vector.
common_entry:
    PUSH_REGISTERS
    cld
    mov rax, [rsp + T_VECTOR]
    test byte ptr [rsp + T_CS], 3
    jz from_kernel
    mov rsp, stack_top          ; the frame is in the task; work on the kernel's stack
    mov rbx, [current]
    cmp eax, 0x20
    je user_timer
    cmp eax, 14
    je user_page_fault
    cmp eax, 0x80
    je by_int80
    cmp eax, 32
    jb kill                     ; any other exception
    jmp resume                  ; a stray interrupt

; Only the idle loop runs with interrupts on: anything but the timer is a bug of ours.
from_kernel:
    cmp eax, 0x20
    jne @bug
    call tick
    POP_REGISTERS
    add rsp, 16
    IRETQ
@bug:
    PRINT "kernel exception "
    call puthex
    PRINT " at "
    mov rax, [rsp + T_RIP]
    call puthex
    PRINTLN ""
    mov al, 1
    jmp power_off

tick:
    inc qword ptr [clock_page]
    OUTB 0x20, 0x20             ; end of interrupt
    ret

user_timer:
    inc qword ptr [preemptions]
    call tick
    jmp schedule

; Not present, from user mode, inside the demand-paged area: give it a page and try again.
user_page_fault:
    READ_CR2 rsi
    test byte ptr [rbx + T_ERROR], 1
    jnz kill
    mov rax, USER_DATA
    cmp rsi, rax
    jb kill
    mov rax, USER_STACK
    cmp rsi, rax
    jae kill
    call new_page
    or rax, PTE_P + PTE_W + PTE_U
    mov rcx, rsi
    shr rcx, 12
    and ecx, 511
    mov rdx, [rbx + T_PT]
    mov [rdx + rcx * 8], rax
    FLUSH_PAGE rsi
    inc qword ptr [demand_pages]
    jmp resume

; Another exception in user mode: say so and end the task.
kill:
    call my_turn
    PRINT "task "
    mov al, [rbx + T_NAME]
    call putc
    PRINT " killed: exception "
    mov eax, [rbx + T_VECTOR]
    call putdec
    PRINT ", error code "
    mov eax, [rbx + T_ERROR]
    call puthex
    cmp qword ptr [rbx + T_VECTOR], 14
    jne @no_address
    PRINT ", address "
    READ_CR2 rax
    call puthex
@no_address:
    PRINTLN ""
    inc qword ptr [killed]
    mov qword ptr [rbx + T_STATE], DEAD
    call end_turn
    jmp schedule

; SYSCALL saves nothing but RIP and RFLAGS in RCX and R11: make the same frame an interrupt makes.
syscall_entry:
    SWAPGS
    mov gs:[8], rsp
    mov rsp, gs:[0]             ; the end of the current task's frame
    push UDATA
    push qword ptr gs:[8]
    push r11
    push UCODE
    push rcx
    push 0
    push BY_SYSCALL
    PUSH_REGISTERS
    cld
    SWAPGS                      ; the kernel needs GS for nothing else
    mov rsp, stack_top
    mov rbx, [current]
    inc qword ptr [syscalls]
    jmp system_call

by_int80:
    inc qword ptr [int80s]
system_call:
    mov rax, [rbx + T_RAX]
    cmp rax, SYS_PRINT
    je sys_print
    cmp rax, SYS_SLEEP
    je sys_sleep
    call my_turn                ; SYS_EXIT
    mov qword ptr [rbx + T_STATE], DEAD
    PRINT "task "
    mov al, [rbx + T_NAME]
    call putc
    PRINTLN " exits"
    call end_turn
    jmp schedule

sys_print:
    call my_turn
    mov al, [rbx + T_NAME]
    call putc
    PRINT ": "
    mov rsi, [rbx + T_RDI]      ; the task's own space is loaded, and its code page is present
    call puts
    PRINTLN ""
    mov qword ptr [rbx + T_RAX], 0
    call end_turn
    jmp resume

sys_sleep:
    mov rax, [clock_page]
    add rax, [rbx + T_RDI]
    mov [rbx + T_WAKE], rax
    mov qword ptr [rbx + T_STATE], ASLEEP
    mov qword ptr [rbx + T_RAX], 0
    jmp schedule

; Lines come out in task order, round after round. If it is RBX's turn, return; else drop what it
; asked for and make it come back here, by the same instruction, when its turn has come.
my_turn:
    cmp [turn], rbx
    je @mine
    mov qword ptr [rbx + T_STATE], WAITING
    ; A system call instruction has 2 bytes: SYSCALL and INT 0x80 alike. A fault repeats anyway.
    cmp qword ptr [rbx + T_VECTOR], 32
    jb schedule
    sub qword ptr [rbx + T_RIP], 2
    jmp schedule
@mine:
    ret

; Pass the turn on to the next task that lives.
end_turn:
    mov rax, [turn]
    mov ecx, TASKS
@next:
    add rax, T_SIZE
    cmp rax, tasks + TASKS * T_SIZE
    jb @in_range
    mov rax, tasks
@in_range:
    cmp qword ptr [rax + T_STATE], DEAD
    jne @found
    dec ecx
    jnz @next
@found:
    mov [turn], rax
    ret

; One 16-byte stub a vector: push an error code where the CPU does not, then the vector.
.align 16
vector_stubs:
.equ vector, 0
.rept 256
STUB vector
.equ vector, vector + 1
.endr

; ---- user code: runs at USER_CODE, so only relative references ----------------------------
.section user
user_a:
    mov ebx, STEPS
@step:
    call spin
    mov eax, SYS_PRINT
    lea rdi, [a_text]
    syscall
    dec ebx
    jnz @step
    mov eax, SYS_EXIT
    syscall

user_b:
    mov ebx, STEPS
    mov r12, 0x1111222233334444
    mov r13, 0x5555666677778888
    mov r14, r12
    xor r14, r13
    mov rbp, rsp
@step:
    call spin
    mov rax, r12
    xor rax, r13
    cmp rax, r14
    jne @wrong
    cmp rbp, rsp
    jne @wrong
    lea rdi, [b_text]
    mov eax, SYS_PRINT
    int 0x80
    dec ebx
    jnz @step
@exit:
    mov eax, SYS_EXIT
    int 0x80
@wrong:
    lea rdi, [b_wrong]
    mov eax, SYS_PRINT
    int 0x80
    jmp @exit

; Let TICKS_A_STEP ticks pass without calling the kernel: only the timer can take the CPU away.
spin:
    mov rdx, USER_CLOCK
    mov rax, [rdx]
    add rax, TICKS_A_STEP
@wait:
    pause
    cmp [rdx], rax
    jb @wait
    ret

user_c:
    lea rdi, [c_text]
    mov eax, SYS_PRINT
    syscall
    mov rdi, 1
    mov eax, SYS_SLEEP
    syscall
    mov rdi, USER_DATA          ; eight pages nobody has yet
    mov ecx, 8
@write:
    mov [rdi + rcx], rcx
    add rdi, 0x1000
    dec ecx
    jnz @write
    mov rdi, USER_DATA
    mov ecx, 8
    xor eax, eax
@read:
    add rax, [rdi + rcx]
    add rdi, 0x1000
    dec ecx
    jnz @read
    lea rdi, [c_sum_ok]
    cmp rax, 36
    je @say
    lea rdi, [c_sum_bad]
@say:
    mov eax, SYS_PRINT
    syscall
    mov ebx, 5                  ; the others wait for our turn: the kernel has nothing to run
@nap:
    mov rdi, 2
    mov eax, SYS_SLEEP
    syscall
    dec ebx
    jnz @nap
    lea rdi, [c_kernel]
    mov eax, SYS_PRINT
    int 0x80
    mov ecx, 0x100000           ; the kernel's first byte
    mov al, [rcx]
    lea rdi, [c_sum_bad]        ; never reached
    mov eax, SYS_PRINT
    syscall
    ud2

user_d:
    lea rdi, [d_text]
    mov eax, SYS_PRINT
    syscall
    cli
    ud2

a_text: .asciz "a step, by syscall"
b_text: .asciz "a step, by int 0x80"
b_wrong: .asciz "a register changed"
c_text: .asciz "asleep"
c_sum_ok: .asciz "eight new pages keep what was written"
c_sum_bad: .asciz "wrong"
c_kernel: .asciz "reads kernel memory"
d_text: .asciz "tries cli"

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
.word 256 * 16 - 1
.quad idt
.align 16
tss: .space 102
.word 104                               ; no I/O bitmap: user mode may use no port
.align 8
current: .quad tasks + (TASKS - 1) * T_SIZE     ; so that the first to run is task A
turn: .quad tasks
pool_next: .quad pool
entries: .quad user_a - user_start + USER_CODE, user_b - user_start + USER_CODE
.quad user_c - user_start + USER_CODE, user_d - user_start + USER_CODE
preemptions: .quad 0
idle_halts: .quad 0
syscalls: .quad 0
int80s: .quad 0
demand_pages: .quad 0
killed: .quad 0
per_cpu: .quad 0, 0                     ; GS:0 frame end, GS:8 user RSP while entering
failed: .byte 0

.section bss
page_tables: .space 0x3000
clock_page: .space 0x1000
idt: .space 0x1000
.align 16
tasks: .space TASKS * T_SIZE
.align 4096
.space 0x2000
stack_top:
pool: .space 48 * 0x1000
pool_end:
