; SPDX-License-Identifier: GPL-2.0-or-later
; The tables of the sensitive guests and how a case is entered; width-neutral like harness.s.
; HARNESS_BITS is the kernel's own code width.

; The GDT has the same layout in both guests. SYSENTER and SYSEXIT count from 0x08, SYSRET from
; 0x18. System descriptors take 16 bytes in long mode and leave a hole otherwise.
.equ KCODE, 0x08
.equ KDATA, 0x10
.equ UCODE32, 0x18 + 3
.equ UDATA, 0x20 + 3
.equ TSS_SEL, 0x38
.equ LDT_SEL, 0x48
.equ TSS2_SEL, 0x58
.equ GATE_SEL, 0x68             ; call gate to gate_target, DPL 3
.equ ABSENT_SEL, 0x78           ; data, DPL 3, not present
.equ ABSENT_CODE_SEL, 0x80      ; code, DPL 3, not present
.equ KABSENT_SEL, 0x88          ; code, DPL 0, not present
.equ READONLY_SEL, 0x90         ; data, DPL 3, read-only
.equ XONLY_SEL, 0x98            ; code, DPL 3, execute-only
.equ CONFORM_SEL, 0xa0          ; code, DPL 0, conforming, readable
.equ SMALL_SEL, 0xa8            ; data, DPL 3, limit 0x1234
.equ K16_SEL, 0xb0              ; 16-bit code and data
.equ U16_SEL, 0xb8
.equ KD16_SEL, 0xc0
.equ UD16_SEL, 0xc8
.equ CR0_VALUE, CR0_PG + CR0_WP + CR0_NE + CR0_MP + CR0_PE + 0x10

.section data
.align 16
gdt:
.quad 0
.if HARNESS_BITS == 64
DESCRIPTOR 0, 0xfffff, 0x9b, 0xa
.else
DESCRIPTOR 0, 0xfffff, 0x9b, 0xc
.endif
DESCRIPTOR 0, 0xfffff, 0x93, 0xc
DESCRIPTOR 0, 0xfffff, 0xfb, 0xc        ; UCODE32
DESCRIPTOR 0, 0xfffff, 0xf3, 0xc
.if HARNESS_BITS == 64
DESCRIPTOR 0, 0xfffff, 0xfb, 0xa        ; 64-bit user code
.else
DESCRIPTOR 0, 0xfffff, 0xfb, 0xc
.endif
DESCRIPTOR 0, 0xfffff, 0xf3, 0xc        ; what SYSEXIT to 64-bit code takes for its stack
DESCRIPTOR tss, tss_end - tss - 1, 0x89, 0
.quad 0
DESCRIPTOR ldt, 15, 0x82, 0
.quad 0
DESCRIPTOR tss, 103, 0x89, 0
.quad 0
.word gate_target & 0xffff, KCODE, 0xec00, gate_target >> 16
.quad 0
DESCRIPTOR 0, 0xfffff, 0x73, 0xc
DESCRIPTOR 0, 0xfffff, 0x7b, USER_CODE_FLAGS
DESCRIPTOR 0, 0xfffff, 0x1b, USER_CODE_FLAGS
DESCRIPTOR 0, 0xfffff, 0xf1, 0xc
DESCRIPTOR 0, 0xfffff, 0xf9, USER_CODE_FLAGS
DESCRIPTOR 0, 0xfffff, 0x9f, USER_CODE_FLAGS
DESCRIPTOR 0, 0x1234, 0xf3, 4
DESCRIPTOR user_start, 0xffff, 0x9b, 0
DESCRIPTOR user_start, 0xffff, 0xfb, 0
DESCRIPTOR udata_start, 0xffff, 0x93, 0
DESCRIPTOR udata_start, 0xffff, 0xf3, 0
gdt_end:
ldt:
DESCRIPTOR 0, 0x2345, 0xf3, 4
.quad 0
gdt_pointer:
.word gdt_end - gdt - 1
.long gdt, 0

; I/O permission: user mode may use 0xe4-0xe7, 0x220-0x223 and 0x228-0x22a. The byte of ones at the end is
; architecture: a multi-byte check reads one byte more.
.align 16
tss:
.if HARNESS_BITS == 64
.long 0, kernel_stack_top, 0            ; RSP0
.space 24
.long fault_stack_top, 0                ; IST1: every gate uses it
.space 102 - 44
.else
.long 0, kernel_stack_top, KDATA        ; ESP0, SS0
.space 102 - 12
.endif
.word io_bitmap - tss
io_bitmap:
.space 0xe0 / 8, 0xff
.byte 0x0f
.space (0x220 - 0xe8) / 8, 0xff
.byte 0xf0, 0xf8
.byte 0xff, 0xff
tss_end:

.section text
.bits HARNESS_BITS
; Fill the IDT. Gates are DPL 0 except INT3, INTO, 0x81 (a case is done) and 0x82 (service);
; 0x84 is not present.
fill_idt:
    mov edi, idt
    mov eax, vector_stubs
    mov ecx, 0x90
@gate:
    mov [XDI], ax
    mov word ptr [XDI + 2], KCODE
    mov word ptr [XDI + 4], 0x8e00 + GATE_IST
    mov edx, eax
    shr edx, 16
    mov [XDI + 6], dx
    add eax, 16
    add edi, GATE_SIZE
    dec ecx
    jnz @gate
    mov byte ptr [idt + 3 * GATE_SIZE + 5], 0xee
    mov byte ptr [idt + 4 * GATE_SIZE + 5], 0xee
    mov byte ptr [idt + 0x81 * GATE_SIZE + 5], 0xee
    mov byte ptr [idt + 0x82 * GATE_SIZE + 5], 0xee
    mov byte ptr [idt + VEC_SKIPPED * GATE_SIZE + 5], 0xee
    mov byte ptr [idt + 0x84 * GATE_SIZE + 5], 0x6e
    ret

; Map the page table's reach one to one: `user` and `udata` for user mode too, the special pages
; as their names say.
fill_page_table:
    mov edi, low_table
    mov eax, PTE_P + PTE_W
    mov ecx, 4096 / PTE_SIZE
@page:
    mov edx, eax
    cmp eax, user_start
    jb @put
    cmp eax, udata_end
    jae @put
    or edx, PTE_U
@put:
    mov [XDI], edx
    add edi, PTE_SIZE
    add eax, 0x1000
    dec ecx
    jnz @page
    mov dword ptr [low_table + (absent_page >> 12) * PTE_SIZE], 0
    mov dword ptr [low_table + (read_only_page >> 12) * PTE_SIZE], read_only_page + PTE_P + PTE_U
    mov dword ptr [window_page], 0xaaaa
    mov dword ptr [other_page], 0xbbbb
    ret

; What the harness wants to know of the CPU: SYSENTER, and whether it is QEMU's TCG (whose
; hypervisor leaf says "TCGTCGTCGTCG").
detect:
    mov eax, f_sep
    call has_feature
    setnz al
    movzx eax, al
    mov [has_sysenter], eax
    mov eax, 0x40000000
    cpuid
    xor eax, eax
    cmp ebx, 0x54474354
    jne @set
    inc eax
@set:
    mov [under_tcg], eax
    ret

.macro SET_MSR number, value
    mov ecx, \number
    mov eax, \value
    xor edx, edx
    wrmsr
.endm

; Put back what a case may have changed. Runs on the harness's stack, interrupts off.
restore:
    push 2
    XPOPF
    lgdt [gdt_pointer]
    lidt [idt_pointer]
    mov eax, KDATA
    mov ds, eax
    mov es, eax
    mov fs, eax
    mov gs, eax
    mov al, 0xff
    out 0x21, al
    xor eax, eax
    lldt ax
    mov byte ptr [gdt + TSS_SEL + 5], 0x89      ; available again
    mov byte ptr [gdt + TSS2_SEL + 5], 0x89
    mov eax, TSS_SEL
    ltr ax
    mov eax, CR0_VALUE
    mov cr0, FAX
    mov eax, CR4_VALUE
    mov cr4, FAX
    xor eax, eax
    mov cr2, FAX
    mov dr0, FAX
    mov eax, 0x400
    mov dr7, FAX
    mov dword ptr [low_table + (window_page >> 12) * PTE_SIZE], window_page + PTE_P + PTE_W
    mov ecx, window_page
    invlpg [XCX]
    cmp dword ptr [has_sysenter], 0
    je @no_sysenter
    SET_MSR 0x174, KCODE
    SET_MSR 0x175, kernel_stack_top
    SET_MSR 0x176, sysenter_target
@no_sysenter:
    RESTORE_MORE
    ret

; Start the current case in the current mode (see harness.s for what it is given).
enter_case:
    mov edi, udata_start
    xor eax, eax
    mov ecx, 36                 ; scratch, scratch2 and the tick counters
    rep stosd
    mov ebx, [current]
    mov esi, CASE_NATIVE
    cmp dword ptr [XBX + R_BITS], 16
    jne @width
    mov esi, CASE_16
@width:
    cmp dword ptr [mode], K
    je @kernel
    add esi, 16
@kernel:                        ; XSI: code selector, data selector, stack selector, flags
    ENTER_FRAME
    mov edi, scratch2
    mov ecx, scratch
    cmp dword ptr [XBX + R_BITS], 16
    jne @flat
    sub edi, udata_start
    sub ecx, udata_start
@flat:
    mov ebp, [XSI]
    mov ebx, [XSI + 4]
    mov esi, ecx
    xor eax, eax
    xor ecx, ecx
    xor edx, edx
    mov es, ebx
    mov ds, ebx
    HARNESS_IRET

; Where calls and system calls into the kernel end: what is in CS and SS there, and the caller's CS.
gate_target:
    mov XCX, [XSP + WORD_BYTES]
    and ecx, 0xffff
    mov eax, cs
    mov ebx, ss
    int VEC_DONE
sysenter_target:
    mov eax, cs
    mov ebx, ss
    int VEC_DONE

.section data
.align 16
has_sysenter: .long 0
CASE_NATIVE: .long KCODE, KDATA, KDATA, 2, UCODE, UDATA, UDATA, FL_IF + 2
CASE_16: .long K16_SEL, KD16_SEL, KDATA, 2, U16_SEL + 3, UD16_SEL + 3, UDATA, FL_IF + 2

.section user
.bits 32
user_target32:
    mov eax, cs
    mov ebx, ss
    int VEC_DONE

; Cases go on in user mode, on the same stack, with these flags.
.macro TO_USER flags
    mov eax, UDATA
    push FAX
    mov FAX, FSP
    push FAX
    mov eax, \flags
    push FAX
    mov eax, CASE_UCODE
    push FAX
    mov eax, @user\@ - CBASE
    push FAX
    FIRET
@user\@:
    mov eax, cs
    mov ebx, ss
    mov ecx, ds
    mov edx, es
.endm
; EAX = what the window shows; then its page-table entry points at the other page. Leaves the
; window's address in FCX, ES flat.
.macro REMAP_WINDOW
    mov ecx, KDATA
    mov es, cx
    mov ecx, window_page
    mov edi, low_table + (window_page >> 12) * PTE_SIZE
    mov eax, es:[FCX]
    mov edx, other_page + PTE_P + PTE_W
    mov es:[FDI], edx
.endm
.macro READ_WINDOW
    mov ecx, es:[FCX]
.endm
.macro FLAT_INVLPG
    invlpg es:[FCX]
.endm
.macro XRETF_IMM bytes
.if BITS == 64
.byte 0x48
.endif
.byte 0xca
.word \bytes
.endm
.macro PUSH_OLD_STACK           ; IRETQ always pops SS:RSP
.if BITS == 64
    push rbx
    push rdx
.endif
.endm

.section bss
.align 4096
low_table: .space 0x1000
window_page: .space 0x1000
other_page: .space 0x1000
read_only_page: .space 0x1000
absent_page: .space 0x1000
idt: .space 0x90 * GATE_SIZE
idt_end:
.align 4096
.space 0x1000
kernel_stack_top:
.space 0x1000
fault_stack_top:
.space 0x1000
stack_top:
