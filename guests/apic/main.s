; SPDX-License-Identifier: GPL-2.0-or-later
; apic: a kernel that uses what a PC has since the nineties: the local APIC with its timer, the
; I/O APIC, the 8259s through the APIC's virtual wire, PCI's configuration space and the ACPI tables.
; Each line is an experiment and what came of it; vectors are those of the interrupts that were
; taken, in order. No line depends on how fast anything is, so QEMU prints the same. Ends with
; status 0, or 9 after an exception, as on `--machine legacy`.
.include "../lib/boot.s"
.include "../lib/longmode.s"
.include "../lib/wide64.s"
.bits 64
.include "../lib/uart.s"
.bits 32

.equ CODE, 0x08
.equ DATA, 0x10

.equ LAPIC, 0xfee00000          ; Intel SDM 3A, 10.4.1
.equ LAPIC_VERSION, 0x30
.equ LAPIC_TPR, 0x80
.equ LAPIC_PPR, 0xa0
.equ LAPIC_EOI, 0xb0
.equ LAPIC_SVR, 0xf0
.equ LAPIC_IRR, 0x200
.equ LAPIC_ICR, 0x300
.equ LAPIC_ICR_HIGH, 0x310
.equ LVT_TIMER, 0x320
.equ LVT_LINT0, 0x350
.equ TIMER_INITIAL, 0x380
.equ TIMER_CURRENT, 0x390
.equ TIMER_DIVIDE, 0x3e0
.equ MASKED, 0x10000
.equ PERIODIC, 0x20000
.equ EXTINT, 0x700
.equ SELF, 0x40000              ; ICR shorthand

.equ IOAPIC, 0xfec00000         ; 82093AA: a selector and a window
.equ IOAPIC_WINDOW, 0x10
.equ LEVEL, 0x8000
.equ REMOTE_IRR, 0x4000

.equ PIC, 0x20
.equ PIT, 0x40

start:
    cli
    mov esp, stack_top
    ENTER_LONG_MODE page_tables, 4, gdt_pointer, CODE, DATA, main

.bits 64
; RBX = the local APIC, RBP = the I/O APIC, from here on.
main:
    mov rsp, stack_top
    call uart_init
    call set_up_idt
    call set_up_8259s
    mov ebx, LAPIC
    mov ebp, IOAPIC
    call show_the_apics
    call test_requests
    call test_task_priority
    call test_timer
    call test_virtual_wire
    call test_ioapic
    call show_pci
    call show_acpi
    mov al, 0
    jmp power_off

; ---- what is there ------------------------------------------------------------------------
show_the_apics:
    PRINT "base register: "
    mov ecx, 0x1b
    rdmsr
    call puthex                 ; address, enabled, bootstrap processor
    PRINT ", local APIC version and last LVT entry: "
    mov eax, [rbx + LAPIC_VERSION]
    call puthex
    PRINT ", I/O APIC pins: "
    mov dword ptr [rbp], 1
    mov eax, [rbp + IOAPIC_WINDOW]
    shr eax, 16
    and eax, 0xff
    inc eax
    call putdec
    call newline
    mov dword ptr [rbx + LAPIC_SVR], 0x1ff  ; software enable, spurious vector 0xff
    mov dword ptr [rbx + LVT_LINT0], MASKED + EXTINT
    ret

; ---- IRR, ISR, PPR: who comes first, who waits (10.8) -------------------------------------
.macro SEND vector              ; an interrupt to ourselves
    mov dword ptr [rbx + LAPIC_ICR_HIGH], 0
    mov dword ptr [rbx + LAPIC_ICR], SELF + \vector
.endm
.macro OPEN                     ; interrupts on for a moment: as long as two OUTs take
    sti
    out 0x80, al
    out 0x80, al
    cli
.endm
.macro END_OF_INTERRUPT
    mov dword ptr [rbx + LAPIC_EOI], 0
.endm

test_requests:
    mov byte ptr [manual_eoi], 1
    PRINT "requested while off: "
    SEND 0x51
    mov eax, [rbx + LAPIC_IRR + 0x20]       ; vectors 0x40-0x5f
    call puthex
    PRINT ", taken: "
    OPEN
    call show_taken
    PRINT ", priority then: "
    mov eax, [rbx + LAPIC_PPR]
    call puthex
    call newline
    PRINT "its own class and one below, while it is served: "
    SEND 0x5f
    SEND 0x4f
    OPEN
    call show_taken
    PRINT ", one above: "
    SEND 0x61
    OPEN
    call show_taken
    PRINT ", when these are done: "
    END_OF_INTERRUPT
    END_OF_INTERRUPT
    OPEN
    END_OF_INTERRUPT
    OPEN
    END_OF_INTERRUPT
    call show_taken
    call newline
    PRINT "three at once, asked for from low to high: "
    mov byte ptr [manual_eoi], 0
    SEND 0x41
    SEND 0x52
    SEND 0x63
    OPEN
    OPEN
    OPEN
    call show_taken
    call newline
    ret

; ---- TPR is CR8 (10.8.6) ------------------------------------------------------------------
test_task_priority:
    PRINT "CR8 5: TPR "
    mov eax, 5
    mov cr8, rax
    mov eax, [rbx + LAPIC_TPR]
    call puthex
    PRINT ", 51 and 61 asked for, taken: "
    SEND 0x51
    SEND 0x61
    OPEN
    call show_taken
    PRINT ", TPR 0x40: CR8 "
    mov dword ptr [rbx + LAPIC_TPR], 0x40
    mov rax, cr8
    call puthex
    PRINT ", taken: "
    OPEN
    call show_taken
    xor eax, eax
    mov cr8, rax
    call newline
    ret

; ---- the APIC's timer (10.5.4) ------------------------------------------------------------
test_timer:
    PRINT "timer, masked: counts down: "
    mov dword ptr [rbx + TIMER_DIVIDE], 0xb             ; by 1
    mov dword ptr [rbx + LVT_TIMER], MASKED + 0x72
    mov dword ptr [rbx + TIMER_INITIAL], 0x7fffffff
    mov ecx, [rbx + TIMER_CURRENT]
@wait:
    mov eax, [rbx + TIMER_CURRENT]
    cmp eax, ecx
    je @wait
    cmp eax, ecx
    call show_below
    mov dword ptr [rbx + TIMER_INITIAL], 0
    PRINT ", stopped: "
    mov eax, [rbx + TIMER_CURRENT]
    call putdec
    PRINT ", once: "
    mov dword ptr [rbx + LVT_TIMER], 0x72
    mov dword ptr [rbx + TIMER_INITIAL], 10000
    mov ecx, 1
    call wait_taken
    call show_taken
    PRINT ", then at: "
    mov eax, [rbx + TIMER_CURRENT]
    call putdec
    PRINT ", periodic: "
    mov dword ptr [rbx + LVT_TIMER], PERIODIC + 0x73
    mov dword ptr [rbx + TIMER_INITIAL], 100000
    mov ecx, 3
    call wait_taken
    mov dword ptr [rbx + TIMER_INITIAL], 0
    mov dword ptr [taken], 3                            ; a fourth may have come already
    call show_taken
    OPEN
    mov dword ptr [taken], 0
    call newline
    ret

; ---- 8254 and 8259 through LINT0, as an ExtINT --------------------------------------------
.macro START_PIT                ; channel 0, mode 0: one edge after some 2 ms
    OUTB PIT + 3, 0x30
    OUTB PIT, 0
    OUTB PIT, 9
.endm

test_virtual_wire:
    PRINT "8254 and 8259 by way of LINT0: "
    mov dword ptr [rbx + LVT_LINT0], EXTINT
    OUTB PIC + 1, 0xfe                                  ; IRQ 0 only
    START_PIT
    mov ecx, 1
    call wait_taken
    call show_taken
    PRINT ", LINT0 masked: "
    mov dword ptr [rbx + LVT_LINT0], MASKED + EXTINT
    START_PIT
    OUTB PIC, 0x0a                                      ; OCW3: reads give IRR
    mov dx, PIC
@wait:
    in al, dx
    test al, 1
    jz @wait
    OPEN
    call show_taken
    OUTB PIC + 1, 0xff
    call newline
    ret

; ---- I/O APIC ------------------------------------------------------------------------------
.macro REDIRECT pin, low        ; to the APIC with ID 0
    mov dword ptr [rbp], 0x11 + \pin * 2
    mov dword ptr [rbp + IOAPIC_WINDOW], 0
    mov dword ptr [rbp], 0x10 + \pin * 2
    mov dword ptr [rbp + IOAPIC_WINDOW], \low
.endm

test_ioapic:
    PRINT "8254 on pin 2 of the I/O APIC, edge: "
    REDIRECT 2, 0x82
    START_PIT
    mov ecx, 1
    call wait_taken
    call show_taken
    REDIRECT 2, MASKED
    call newline
    ; COM1 asks for an interrupt as long as it may: "transmitter empty" with IER bit 1.
    PRINT "COM1 on pin 4, level: "
    call drain
    mov byte ptr [manual_eoi], 1
    REDIRECT 4, LEVEL + 0x84
    OUTB COM1 + 4, 0x0b                                 ; DTR, RTS, OUT2
    OUTB COM1 + 1, 2
    OPEN
    call remote_irr
    mov r12d, eax
    OUTB COM1 + 1, 0
    call show_taken
    PRINT ", in service: "
    mov eax, r12d
    call putdec
    END_OF_INTERRUPT
    PRINT ", ended and released: "
    OPEN
    call remote_irr
    mov r12d, eax
    call show_taken
    PRINT ", in service: "
    mov eax, r12d
    call putdec
    PRINT ", ended while still asserted: "
    call drain
    OUTB COM1 + 1, 2
    OPEN
    END_OF_INTERRUPT
    OPEN
    OUTB COM1 + 1, 0
    END_OF_INTERRUPT
    OPEN
    call show_taken
    REDIRECT 4, MASKED
    mov byte ptr [manual_eoi], 0
    call newline
    ret

remote_irr:                     ; EAX = pin 4's bit
    mov dword ptr [rbp], 0x10 + 4 * 2
    mov eax, [rbp + IOAPIC_WINDOW]
    shr eax, 14
    and eax, 1
    ret

drain:                          ; until COM1 has sent everything
    push rdx
    mov dx, COM1 + 5
@wait:
    in al, dx
    test al, 0x40
    jz @wait
    pop rdx
    ret

; ---- PCI, by configuration mechanism 1 -----------------------------------------------------
show_pci:
    PRINT "PCI 00:00.0: "
    mov eax, 0x80000000
    call pci_read
    call puthex
    PRINT ", class "
    mov eax, 0x80000008
    call pci_read
    shr eax, 16
    call puthex
    PRINT ", 00:1f.7: "
    mov eax, 0x8000ff00
    call pci_read
    call puthex
    call newline
    ret

pci_read:                       ; EAX = the configuration word at address EAX
    mov dx, 0xcf8
    out dx, eax
    mov dx, 0xcfc
    in eax, dx
    ret

; ---- ACPI: RSDP, RSDT, and in the MADT where the APICs are ----------------------------------
show_acpi:
    PRINT "ACPI: RSDP "
    mov esi, 0xe0000
    mov rax, [rsdp_signature]
@scan:
    cmp [rsi], rax
    je @found
    add esi, 16
    cmp esi, 0x100000
    jb @scan
    PRINTLN "not found"
    ret
@found:
    mov ecx, 20
    call show_sum
    mov esi, [rsi + 16]
    PRINT ", RSDT "
    mov ecx, [rsi + 4]
    call show_sum
    mov r12d, ecx
    sub r12d, 36
    shr r12d, 2                 ; entries
    lea r13, [rsi + 36]
@next:
    test r12d, r12d
    jz @done
    mov esi, [r13]
    add r13, 4
    dec r12d
    cmp dword ptr [rsi], 0x50434146         ; "FACP"
    je @fadt
    cmp dword ptr [rsi], 0x43495041         ; "APIC"
    jne @next
    mov r14d, esi
    jmp @next
@fadt:
    mov r15d, esi
    jmp @next
@done:
    mov esi, r15d
    PRINT ", FADT "
    mov ecx, [rsi + 4]
    call show_sum
    mov esi, [r15 + 40]
    PRINT ", DSDT "
    mov ecx, [rsi + 4]
    call show_sum
    mov esi, r14d
    PRINT ", MADT "
    mov ecx, [rsi + 4]
    call show_sum
    call newline
    PRINT "MADT: local APIC at "
    mov eax, [rsi + 36]
    call puthex
    lea r12, [rsi + rcx]        ; end of the table
    lea r13, [rsi + 44]
@entry:
    cmp r13, r12
    jae @end
    cmp byte ptr [r13], 1
    je @ioapic
    cmp byte ptr [r13], 2
    je @override
@onward:
    movzx eax, byte ptr [r13 + 1]
    add r13, rax
    jmp @entry
@ioapic:
    PRINT ", I/O APIC at "
    mov eax, [r13 + 4]
    call puthex
    jmp @onward
@override:
    cmp byte ptr [r13 + 3], 0
    jne @onward
    PRINT ", IRQ 0 on pin "
    mov eax, [r13 + 4]
    call putdec
    jmp @onward
@end:
    call newline
    ret

show_sum:                       ; RSI = a table of ECX bytes: is their sum 0?
    push rcx
    push rsi
    xor eax, eax
@add:
    add al, [rsi]
    inc rsi
    dec ecx
    jnz @add
    test al, al
    jnz @bad
    PRINT "good"
    jmp @out
@bad:
    PRINT "bad"
@out:
    pop rsi
    pop rcx
    ret

; ---- interrupts: which were taken ----------------------------------------------------------
wait_taken:                     ; until ECX interrupts have been taken
@again:
    cmp [taken], ecx
    jae @out
    sti
    hlt
    cli
    jmp @again
@out:
    ret

show_taken:                     ; their vectors, and forget them
    push rax
    push rcx
    push rdx
    mov ecx, [taken]
    test ecx, ecx
    jnz @some
    PRINT "none"
    jmp @out
@some:
    xor edx, edx
@next:
    test edx, edx
    jz @first
    PRINT " "
@first:
    movzx eax, byte ptr [vectors + rdx]
    call puthex
    inc edx
    cmp edx, ecx
    jb @next
@out:
    mov dword ptr [taken], 0
    pop rdx
    pop rcx
    pop rax
    ret

show_below:                     ; the carry flag as an answer
    jc @yes
    PRINT "no"
    ret
@yes:
    PRINT "yes"
    ret

newline:
    push rax
    mov al, 10
    call putc
    pop rax
    ret

; A vector's stub: its number, then the common part. 16 bytes each.
.macro STUB number
.align 16
    .byte 0x6a, (\number - 128) & 0xff     ; PUSH, sign-extended: short for all 256
    jmp interrupt
.endm

interrupt:
    push rax
    push rcx
    mov eax, [rsp + 16]
    add eax, 128
    cmp eax, 32
    jb @exception
    mov ecx, [taken]
    and ecx, 63
    mov [vectors + rcx], al
    inc dword ptr [taken]
    cmp eax, 0x40
    jb @pic
    cmp byte ptr [manual_eoi], 0
    jne @out
    mov dword ptr [rbx + LAPIC_EOI], 0
    jmp @out
@pic:
    mov al, 0x20
    out PIC, al
@out:
    pop rcx
    pop rax
    add rsp, 8
    iretq
@exception:
    PRINT "exception "
    call putdec
    call newline
    mov al, 9
    jmp power_off

set_up_idt:
    LOAD_GDT gdt_pointer
    mov rdi, idt
    mov rax, stubs
    mov ecx, 256
@gate:
    mov [rdi], ax
    mov word ptr [rdi + 2], CODE
    mov word ptr [rdi + 4], 0x8e00          ; present, DPL 0, interrupt gate
    mov rdx, rax
    shr rdx, 16
    mov [rdi + 6], dx
    add rax, 16
    add rdi, 16
    dec ecx
    jnz @gate
    LOAD_IDT idt_pointer
    ret

set_up_8259s:                   ; vectors 0x30 and 0x38, all lines masked
    OUTB PIC, 0x11
    OUTB PIC + 1, 0x30
    OUTB PIC + 1, 4
    OUTB PIC + 1, 1
    OUTB PIC + 1, 0xff
    OUTB 0xa0, 0x11
    OUTB 0xa1, 0x38
    OUTB 0xa1, 2
    OUTB 0xa1, 1
    OUTB 0xa1, 0xff
    ret

.align 16
stubs:
.equ vector, 0
.rept 256
STUB vector
.equ vector, vector + 1
.endr

.section data
.align 8
rsdp_signature: .ascii "RSD PTR "
gdt:
.quad 0
DESCRIPTOR 0, 0xfffff, 0x9b, 0xa        ; 0x08: 64-bit code
DESCRIPTOR 0, 0xfffff, 0x93, 0xc        ; 0x10: data
gdt_end:
gdt_pointer:
.word gdt_end - gdt - 1
.quad gdt
idt_pointer:
.word 0xfff
.quad idt

.section bss
page_tables: .space 0x6000
idt: .space 0x1000
taken: .space 4
manual_eoi: .space 4
vectors: .space 64
.space 0x1000
stack_top:
