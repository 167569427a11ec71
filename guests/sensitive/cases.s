; SPDX-License-Identifier: GPL-2.0-or-later
; The cases for one code width; main.s includes this once a width (BITS = 16, 32 or 64), after
; widthNN.s has set the names that differ: XAX.. FAX.. XPUSHF XIRET XRETF, and DBASE/CBASE, where
; data and code offsets count from. See harness.s for what a case starts with and may use.
;
; Values that legitimately differ between machines are masked here, so that what remains is what
; the architecture promises.

; ==== interrupt flag =====================================================================
CASE CLI, cli, KU
    cli
END
CASE CLI, clears-if, K, A
    sti
    cli
    XPUSHF
    pop XAX
    and eax, FL_IF
END
CASE STI, sti, KU
    sti
END
CASE STI, sets-if, K, 0, FL_IF
    sti
END
CASE STI, shadow, K, A              ; 1: the pending tick came, and not before the NOP behind STI
    call WAIT
    sti
    nop
@allowed:
    nop
    nop
    cli
    mov ecx, [first_tick_ip - DBASE]
    xor eax, eax
    cmp dword ptr [ticks - DBASE], 0
    je @early
    cmp ecx, @allowed - case_start
    jb @early
    inc eax
@early:
    nop
END
CASE PUSHF, pushf, KU, A            ; IF is off in kernel cases, on in user cases; IOPL is 0
    XPUSHF
    pop XAX
    and eax, 0x37200
END
CASE PUSHF, other-size, KU, A
    OPUSHF
    OPOP_A
    and eax, 0x7200
END
CASE PUSHF, after-sti, K, A
    sti
    XPUSHF
    pop XAX
    cli
    and eax, FL_IF
END
CASE POPF, sets-if, KU, A           ; user mode cannot change IF, and nothing says so
    mov eax, FL_IF + 2
    push XAX
    XPOPF
    XPUSHF
    pop XAX
    and eax, FL_IF
END
CASE POPF, clears-if, KU, A
    mov eax, 2
    push XAX
    XPOPF
    XPUSHF
    pop XAX
    and eax, FL_IF
END
CASE POPF, clears-if-after-sti, K, A
    sti
    mov eax, 2
    push XAX
    XPOPF
    XPUSHF
    pop XAX
    and eax, FL_IF
END
CASE POPF, iopl, KU, A              ; only ring 0 changes IOPL
    mov eax, 0x3002
    push XAX
    XPOPF
    XPUSHF
    pop XAX
    and eax, 0x3000
    mov ecx, 2
    push XCX
    XPOPF
END
CASE POPF, status-flags, KU, 0, 0xcd5
    mov eax, 0xcd7
    push XAX
    XPOPF
END
CASE POPF, other-size, KU, 0, 0xad5
    mov eax, 0xa57
    OPUSH_A
    OPOPF
END
CASE POPF, nested-task, KU, A
    mov eax, 0x4002
    push XAX
    XPOPF
    XPUSHF
    pop XAX
    and eax, 0x4000
    mov ecx, 2
    push XCX
    XPOPF
END
CASE POPF, pending-tick, K, A       ; POPF that sets IF lets a pending tick in
    call WAIT
    mov eax, FL_IF + 2
    push XAX
    XPOPF
    nop
    nop
    mov ecx, 100000
@wait:
    cmp dword ptr [ticks - DBASE], 0
    jne @ticked
    dec ecx
    jnz @wait
@ticked:                            ; once or, on a slow machine, more often
    cmp dword ptr [ticks - DBASE], 0
    setnz al
    movzx eax, al
END
CASE POPF, trap-flag, KU            ; single step: after the instruction behind POPF
    mov eax, FL_TF + 2
    push XAX
    XPOPF
    nop
    nop
END
CASE HLT, wakes, K, A               ; the tick comes with RIP behind HLT
    call WAIT
    sti
    hlt
    cli
    mov eax, [first_tick_ip - DBASE]
END
CASE HLT, twice, K, A               ; each waits for a tick (on a slow machine more than two come)
    mov al, 0xfe
    out 0x21, al
    sti
    hlt
    sti
    hlt
    cli
    mov eax, [ticks - DBASE]
    cmp eax, 2
    jb @few
    mov eax, 2
@few:
    nop
END
CASE HLT, user, U
    hlt
END

; ==== descriptor tables ==================================================================
CASE SGDT, limit-base, KU, A+B
    sgdt [XSI]
    movzx eax, word ptr [XSI]
    mov ebx, [XSI + 2]
    sub ebx, gdt
END
CASE SIDT, limit-base, KU, A+B
    sidt [XSI]
    movzx eax, word ptr [XSI]
    mov ebx, [XSI + 2]
    sub ebx, idt
END
CASE SLDT, null, KU, A
    sldt eax
END
CASE SLDT, memory, KU, A
    mov dword ptr [XSI], 0xffffffff
    sldt word ptr [XSI]
    mov eax, [XSI]
END
CASE SLDT, after-lldt, K, A
    mov eax, LDT_SEL
    lldt ax
    xor eax, eax
    sldt ax
END
CASE STR, register, KU, A
    str eax
END
CASE STR, word, KU, A
    mov eax, 0xffffffff
    str ax
END
CASE STR, memory, KU, A
    mov dword ptr [XSI], 0xffffffff
    str word ptr [XSI]
    mov eax, [XSI]
END
CASE LGDT, reads-back, K, A+B
    mov word ptr [XSI], gdt_end - gdt + 7
    mov dword ptr [XSI + 2], gdt
    mov dword ptr [XSI + 6], 0
    lgdt [XSI]
    sgdt [XDI]
    movzx eax, word ptr [XDI]
    mov ebx, [XDI + 2]
    sub ebx, gdt
END
CASE LGDT, user, U
    lgdt [XSI]
END
CASE LIDT, reads-back, K, A+B
    mov word ptr [XSI], 0x7ff
    mov dword ptr [XSI + 2], idt + 0x10
    mov dword ptr [XSI + 6], 0
    lidt [XSI]
    sidt [XDI]
    mov word ptr [XSI], idt_end - idt - 1
    mov dword ptr [XSI + 2], idt
    lidt [XSI]
    movzx eax, word ptr [XDI]
    mov ebx, [XDI + 2]
    sub ebx, idt
END
CASE LIDT, user, U
    lidt [XSI]
END
CASE LLDT, loads-a-segment, K, A    ; a data segment of the LDT: LSL shows its limit
    mov eax, LDT_SEL
    lldt ax
    mov ecx, 4                      ; TI = 1, first entry
    mov ds, cx
    lsl eax, ecx
END
CASE LLDT, null, KU
    xor eax, eax
    lldt ax
END
CASE LLDT, not-an-ldt, K
    mov eax, KDATA
    lldt ax
END
CASE LLDT, beyond-gdt, K
    mov eax, 0x1000
    lldt ax
END
CASE LTR, second-tss, K, A+B        ; loads it and marks it busy in the GDT
    mov eax, TSS2_SEL
    ltr ax
    str eax
    mov ecx, TSS2_SEL
    lar ebx, ecx
    and ebx, 0xff00
END
CASE LTR, busy, K
    mov eax, TSS_SEL
    ltr ax
END
CASE LTR, null, K                   ; TCG loads it, and dies at the next change of ring
    NOT_UNDER_TCG
    xor eax, eax
    ltr ax
END
CASE LTR, not-a-tss, K
    mov eax, KDATA
    ltr ax
END
CASE LTR, user, U
    mov eax, TSS2_SEL
    ltr ax
END

; LAR, LSL, VERR and VERW of one selector. LAR's bits 16-19 are undefined: masked.
.macro LOOKUPS label, selector
CASE LAR, \label, KU, A, 0x40
    mov ecx, \selector
    lar eax, ecx
    and eax, 0xf0ff00
    lar edx, ecx                    ; again, for the ZF that AND changed
END
CASE LSL, \label, KU, A, 0x40
    mov ecx, \selector
    lsl eax, ecx
END
CASE VERR, \label, KU, 0, 0x40
    mov ecx, \selector
    verr cx
END
CASE VERW, \label, KU, 0, 0x40
    mov ecx, \selector
    verw cx
END
.endm
LOOKUPS null, 0
LOOKUPS kernel-code, KCODE
LOOKUPS kernel-data, KDATA
LOOKUPS kernel-data-rpl3, KDATA + 3
LOOKUPS user-code, UCODE
LOOKUPS user-data, UDATA
LOOKUPS user-data-rpl0, UDATA - 3
LOOKUPS tss, TSS_SEL
LOOKUPS ldt, LDT_SEL
LOOKUPS call-gate, GATE_SEL
LOOKUPS not-present, ABSENT_SEL
LOOKUPS read-only, READONLY_SEL + 3
LOOKUPS execute-only, XONLY_SEL + 3
LOOKUPS conforming, CONFORM_SEL + 3
LOOKUPS small, SMALL_SEL + 3
LOOKUPS beyond-gdt, 0x1000
LOOKUPS empty-ldt, 0x0c
CASE LAR, word-result, KU, A, 0x40
    mov eax, 0xffffffff
    mov ecx, UDATA
    lar ax, cx
END
CASE LSL, word-result, KU, A, 0x40
    mov eax, 0xffffffff
    mov ecx, SMALL_SEL + 3
    lsl ax, cx
END
CASE LAR, memory, KU, A, 0x40
    mov word ptr [XSI], UDATA
    lar ax, word ptr [XSI]
END
CASE VERR, memory, KU, 0, 0x40
    mov word ptr [XSI], UDATA
    verr word ptr [XSI]
END
CASE VERW, memory, KU, 0, 0x40
    mov word ptr [XSI], UDATA
    verw word ptr [XSI]
END

; ==== segment registers ==================================================================
CASE MOV_FROM_SEG, cs, KU, A
    mov eax, cs
END
CASE MOV_FROM_SEG, cs-word, KU, A
    mov eax, 0xffffffff
    mov ax, cs
END
CASE MOV_FROM_SEG, cs-memory, KU, A
    mov dword ptr [XSI], 0xffffffff
    mov word ptr [XSI], cs
    mov eax, [XSI]
END
CASE MOV_FROM_SEG, ss, KU, A
    mov eax, ss
END
CASE MOV_FROM_SEG, ss-memory, KU, A
    mov word ptr [XSI], ss
    mov eax, [XSI]
END
CASE MOV_FROM_SEG, ds-es, KU, A+C
    mov eax, ds
    mov ecx, es
END

.macro LOADS seg, label, selector
CASE MOV_TO_SEG, \seg-\label, KU, A
    mov eax, \selector
    mov \seg, ax
    mov eax, \seg
END
.endm
LOADS ds, null, 0
LOADS ds, null-rpl3, 3
LOADS ds, kernel, KDATA
LOADS es, user, UDATA
LOADS es, kernel-rpl3, KDATA + 3
LOADS fs, user-rpl0, UDATA - 3
LOADS gs, absent, ABSENT_SEL + 3
LOADS fs, beyond, 0x1000
LOADS ds, code-readable, UCODE
LOADS es, code-execute-only, XONLY_SEL + 3
LOADS gs, system, TSS_SEL
CASE MOV_TO_SEG, ss-same, KU, A     ; BX is the mode's own data selector
    mov eax, ss
    mov ss, ax
    mov eax, ss
END
CASE MOV_TO_SEG, ss-kernel, KU, A
    mov eax, KDATA
    mov ss, ax
    mov eax, ss
END
CASE MOV_TO_SEG, ss-user, KU, A
    mov eax, UDATA
    mov ss, ax
    mov eax, ss
END
CASE MOV_TO_SEG, ss-null, KU, A
    xor eax, eax
    mov ss, ax
    mov eax, ss
END
CASE MOV_TO_SEG, ss-absent, U
    mov eax, ABSENT_SEL + 3
    mov ss, ax
END
CASE MOV_TO_SEG, ss-read-only, U
    mov eax, READONLY_SEL + 3
    mov ss, ax
END
CASE MOV_TO_SEG, memory, KU, A
    mov word ptr [XSI], UDATA
    mov es, word ptr [XSI]
    mov eax, es
END
CASE MOV_TO_SEG, cs, KU             ; there is no such instruction
    mov eax, KCODE
    .byte 0x8e, 0xc8
END
CASE MOV_TO_SEG, ss-shadow, K, A    ; no tick between MOV SS and the instruction behind it
    mov eax, ss
    mov dword ptr [forbidden_ip - DBASE], @shadow
    push XAX
    mov al, 0xfe
    out 0x21, al
    pop XAX
    sti
    nop                             ; where STI's own shadow ends
@again:
    mov ss, ax
@shadow:
    nop
    nop
    cmp dword ptr [ticks - DBASE], 20
    jb @again
    cli
    mov eax, [forbidden_ticks - DBASE]
END
.if BITS < 64
CASE PUSH_SEG, cs, KU, A
    xor eax, eax
    push XAX
    pop XAX
    push cs
    pop XAX
    and eax, 0xffff
END
CASE PUSH_SEG, ss, KU, A
    push ss
    pop XAX
    and eax, 0xffff
END
CASE PUSH_SEG, ds-es, KU, A+C
    push ds
    pop XAX
    push es
    pop XCX
    and eax, 0xffff
    and ecx, 0xffff
END
.endif
.macro POPS seg, label, selector
CASE POP_SEG, \seg-\label, KU, A
    mov eax, \selector
    push XAX
    pop \seg
    mov eax, \seg
END
.endm
.if BITS < 64
POPS ds, user, UDATA
POPS es, null, 0
POPS ds, kernel, KDATA
POPS es, absent, ABSENT_SEL + 3
POPS ss, user, UDATA
POPS ss, kernel, KDATA
.endif
POPS fs, user, UDATA
POPS gs, null, 0
POPS fs, kernel-rpl3, KDATA + 3
POPS gs, beyond, 0x1000
; (In 64-bit code too only the 32-bit form: with REX.W AMD reads 32 bits, Intel 64.)
.macro FAR_POINTERS insn, seg
CASE LOAD_FAR_PTR, \insn, KU, A+C
    mov FAR_WORD ptr [XSI], 0x1234
    mov word ptr [XSI + FAR_BYTES], UDATA
    \insn FAR_AX, [XSI]
    mov ecx, \seg
END
CASE LOAD_FAR_PTR, \insn-kernel, KU, A+C
    mov FAR_WORD ptr [XSI], 0x1234
    mov word ptr [XSI + FAR_BYTES], KDATA
    \insn FAR_AX, [XSI]
    mov ecx, \seg
END
.endm
.if BITS < 64
FAR_POINTERS les, es
FAR_POINTERS lds, ds
.endif
FAR_POINTERS lfs, fs
FAR_POINTERS lgs, gs
CASE LOAD_FAR_PTR, lss, KU, A+C
    mov FAR_WORD ptr [XSI], 0x1234
    mov word ptr [XSI + FAR_BYTES], KDATA
    lss FAR_AX, [XSI]
    mov ecx, ss
END

; ==== control and debug registers ========================================================
CASE SMSW, register, KU, A
    smsw eax
    and eax, 0x8001003f
END
CASE SMSW, word, KU, A
    smsw ax
    and eax, 0xffff003f
END
CASE SMSW, memory, KU, A
    mov dword ptr [XSI], 0xffffffff
    smsw word ptr [XSI]
    mov eax, [XSI]
    and eax, 0xffff003f
END
CASE LMSW, sets-ts, K, A
    smsw ax
    or eax, CR0_TS
    lmsw ax
    smsw ax
    and eax, 0x3f
END
CASE LMSW, keeps-pe, K, A
    xor eax, eax
    lmsw ax
    smsw ax
    and eax, 0x3f
END
CASE LMSW, user, U
    smsw ax
    lmsw ax
END
CASE CLTS, clears-ts, K, A
    mov FAX, cr0
    or eax, CR0_TS
    mov cr0, FAX
    clts
    mov FAX, cr0
    and eax, CR0_TS
END
CASE CLTS, nm, K                    ; with TS set the x87 raises #NM
    mov FAX, cr0
    or eax, CR0_TS
    mov cr0, FAX
    fnop
END
CASE CLTS, user, U
    clts
END
CASE MOV_FROM_CR, cr0, KU, A
    mov FAX, cr0
    and eax, 0x8001003f
END
CASE MOV_FROM_CR, cr3, KU, A
    mov FAX, cr3
    sub eax, ROOT_TABLE
END
CASE MOV_FROM_CR, cr4, KU, A
    mov FAX, cr4
    and eax, CR4_PAE
END
CASE MOV_FROM_CR, cr2-after-fault, K, A
    mov eax, 0x123
    mov cr2, FAX
    xor eax, eax
    mov FAX, cr2
END
CASE MOV_FROM_CR, cr1, K            ; no such register
    .byte 0x0f, 0x20, 0xc8
END
CASE MOV_TO_CR, cr0, U
    mov cr0, FAX
END
CASE MOV_TO_CR, cr3, U
    mov cr3, FAX
END
CASE MOV_TO_CR, cr0-wp, K, A        ; without WP the kernel writes read-only pages
    mov FAX, cr0
    and eax, 0xffffffff - CR0_WP
    mov cr0, FAX
    mov ecx, KDATA
    mov es, cx
    mov ecx, read_only_page
    mov al, 0x55
    mov es:[FCX], al
    xor eax, eax
    mov al, es:[FCX]
END
CASE MOV_TO_CR, cr0-wp-set, K
    mov ecx, KDATA
    mov es, cx
    mov ecx, read_only_page
    mov es:[FCX], al
END
CASE MOV_TO_CR, cr3-flushes, K, A+C
    REMAP_WINDOW
    mov FDX, cr3
    mov cr3, FDX
    READ_WINDOW
END
CASE INVLPG, flushes, K, A+C        ; the window's page before and after its entry changed
    REMAP_WINDOW
    FLAT_INVLPG
    READ_WINDOW
END
CASE INVLPG, user, U
    invlpg [XSI]
END
CASE MOV_FROM_DR, dr7, KU, A
    mov FAX, dr7
END
CASE MOV_FROM_DR, dr6, U
    mov FAX, dr6
END
CASE MOV_TO_DR, dr0, KU, C
    mov eax, 0x12345
    mov dr0, FAX
    mov FCX, dr0
END
CASE MOV_TO_DR, dr6, K, C           ; the fixed bits read as they must
    xor eax, eax
    mov dr6, FAX
    mov FCX, dr6
    and ecx, 0xffff0ff0
END
CASE MOV_TO_DR, dr7, KU, C
    mov eax, 0x700
    mov dr7, FAX
    mov FCX, dr7
    mov eax, 0x400
    mov dr7, FAX
END
CASE STAC, stac, KU, 0, 0, f_smap, VEC_DONE, 6
    stac
    XPUSHF
    mov eax, 1
    pop XCX
END
CASE CLAC, clac, KU, 0, 0, f_smap, VEC_DONE, 6
    clac
    mov eax, 1
END
CASE XGETBV, osxsave-off, KU        ; CR4.OSXSAVE = 0: #UD whatever CPUID says
    xgetbv
END
CASE XGETBV, osxsave-on, K, 0, 0, f_xsave
    UD_WITHOUT_XSAVE
    mov FAX, cr4
    or eax, 1 << 18
    mov cr4, FAX
    xor ecx, ecx
    xgetbv
    and eax, 1                      ; XCR0.x87 is always set
    mov ecx, eax
    mov FDX, cr4
    mov eax, edx
    shr eax, 18                     ; the bit stays clear on a CPU without XSAVE
    and eax, 1
    and eax, ecx
END
CASE XSETBV, osxsave-off, K
    xsetbv
END
CASE XSETBV, user, U, 0, 0, f_xsave, VEC_DONE, 13
    xsetbv
END
CASE XSETBV, osxsave-on, K, 0, 0, f_xsave
    UD_WITHOUT_XSAVE
    mov FAX, cr4
    or eax, 1 << 18
    mov cr4, FAX
    xor ecx, ecx
    xgetbv
    xsetbv
    mov eax, 1
END

; ==== model-specific registers, time, identity ===========================================
CASE RDMSR, sysenter-cs, KU, A+D
    mov ecx, 0x174
    rdmsr
END
CASE RDMSR, unknown, K              ; no such register
    mov ecx, 0x12345678
    rdmsr
END
CASE WRMSR, sysenter-eip, KU, A+D
    mov ecx, 0x176
    mov eax, 0x1234
    mov edx, 0
    wrmsr
    xor eax, eax
    mov edx, 0xffff
    rdmsr
END
CASE WRMSR, unknown, K
    mov ecx, 0x12345678
    wrmsr
END
CASE RDPMC, no-such-counter, KU
    mov ecx, 0x3fffffff
    rdpmc
END
CASE RDTSC, monotonic, KU, A
    rdtsc
    mov ebx, eax
    mov ecx, edx
    rdtsc
    sub eax, ebx
    sbb edx, ecx
    mov eax, 1
    jns @forward
    xor eax, eax
@forward:
    nop
END
CASE RDTSC, cr4-tsd, U, A           ; CR4.TSD = 0: user mode may
    rdtsc
    mov eax, 1
END
CASE RDTSCP, rdtscp, KU, 0, 0, f_rdtscp
    rdtscp
    mov eax, 1
END
CASE RDPID, rdpid, KU, 0, 0, f_rdpid
    .byte 0xf3, 0x0f, 0xc7, 0xf9    ; rdpid ecx
    mov eax, 1
END
CASE CPUID, leaf-0, KU, A           ; at least leaf 1, and a vendor string
    xor eax, eax
    cpuid
    cmp eax, 1
    mov eax, 0
    jb @too_few
    or ecx, ebx
    or ecx, edx
    jz @too_few
    mov eax, 1
@too_few:
    nop
END
CASE CPUID, leaf-1, KU, A           ; FPU TSC MSR, as the other cases need
    mov eax, 1
    cpuid
    mov eax, edx
    and eax, 0x31
END

; ==== caches =============================================================================
.if BITS > 16
CASE INVPCID, invpcid, KU, 0, 0, f_invpcid, VEC_DONE, 13
    mov eax, 2                      ; everything, globals too: the descriptor must be zero
    .byte 0x66, 0x0f, 0x38, 0x82, 0x06
    mov eax, 1
END
.endif
CASE WBINVD, wbinvd, KU
    wbinvd
END
CASE INVD, invd, U                  ; in the kernel it may lose what the caches hold
    invd
END
CASE INVD, after-wbinvd, K
    wbinvd
    invd
END

; ==== input and output ===================================================================
; 0x220-0x223 and 0xe4-0xe7: nobody there, and user mode may use them (TSS bitmap). 0xe0-0xe3
; and 0x224: nobody there, and user mode may not.
.macro INPUTS label, base, byte_port, word_port, long_port
CASE IN, byte-\label, KU, A
    mov dx, \base
    in al, dx
END
CASE IN, word-\label, KU, A
    mov dx, \base
    in ax, dx
END
CASE IN, long-\label, KU, A
    mov dx, \base
    in eax, dx
END
CASE IN, byte-immediate-\label, KU, A
    in al, \byte_port
END
CASE IN, long-immediate-\label, KU, A
    in eax, \long_port
END
CASE OUT, byte-\label, KU
    mov dx, \base
    out dx, al
END
CASE OUT, word-\label, KU
    mov dx, \base
    out dx, ax
END
CASE OUT, long-\label, KU
    mov dx, \base
    out dx, eax
END
CASE OUT, byte-immediate-\label, KU
    out \byte_port, al
END
CASE OUT, long-immediate-\label, KU
    out \long_port, eax
END
.endm
INPUTS allowed, 0x220, 0xe4, 0xe4, 0xe4
INPUTS denied, 0x224, 0xe0, 0xe0, 0xe0
CASE IN, long-partly-denied, KU, A  ; 0x228-0x22a are allowed, 0x22b is not
    mov dx, 0x228
    in eax, dx
END
CASE IN, beyond-bitmap, KU, A
    mov dx, 0x5000
    in al, dx
END
CASE IN, iopl3, K                   ; goes on below: IRET to user mode with IOPL 3
    TO_USER 0x3202
    mov dx, 0x224
    in al, dx
END
CASE CLI, user-iopl3, K, A          ; with IOPL 3 user mode may CLI and STI, and POPF moves IF
    TO_USER 0x3202
    cli
    XPUSHF
    pop XAX
    sti
    and eax, FL_IF
END
CASE POPF, user-iopl3, K, A
    TO_USER 0x3202
    mov eax, 0x0002                 ; IF off; IOPL is not ours to change
    push XAX
    XPOPF
    XPUSHF
    pop XAX
    and eax, 0x3200
END
CASE INS, byte, KU, A+C
    mov dx, 0x220
    insb
    mov eax, [scratch2 - DBASE]
    xor ecx, ecx
    mov cx, di
    sub cx, (scratch2 - DBASE) & 0xffff
END
CASE INS, rep-word, KU, A+B+C
    mov dx, 0x220
    mov ecx, 3
    rep insw
    mov eax, [scratch2 - DBASE]
    mov ebx, [scratch2 - DBASE + 4]
END
CASE INS, rep-long, KU, A+B+C
    mov dx, 0x220
    mov ecx, 2
    rep insd
    mov eax, [scratch2 - DBASE + 4]
    mov ebx, [scratch2 - DBASE + 8]
END
CASE INS, backwards, KU, A
    mov dx, 0x220
    add XDI, 1
    mov ecx, 2
    std
    rep insb
    cld
    mov eax, [scratch2 - DBASE]
END
CASE INS, rep-none, KU, A
    mov dx, 0x220
    xor ecx, ecx
    rep insb
    mov eax, [scratch2 - DBASE]
END
CASE INS, denied, U
    mov dx, 0x224
    insb
END
CASE OUTS, byte, KU, C
    mov dx, 0x220
    outsb
    xor ecx, ecx
    mov cx, si
    sub cx, (scratch - DBASE) & 0xffff
END
CASE OUTS, rep-word, KU, A+C
    mov dx, 0x220
    mov ecx, 5
    rep outsw
    xor eax, eax
    mov ax, si
    sub ax, (scratch - DBASE) & 0xffff
END
CASE OUTS, rep-long, KU, A+C
    mov dx, 0x220
    mov ecx, 4
    rep outsd
    xor eax, eax
    mov ax, si
    sub ax, (scratch - DBASE) & 0xffff
END
CASE OUTS, denied, U
    mov dx, 0x224
    rep outsb
END

; ==== waiting ============================================================================
CASE MONITOR, monitor, KU, 0, 0, f_monitor, VEC_DONE, 6
    mov XAX, XSI
    xor ecx, ecx
    xor edx, edx
    monitor
    mov eax, 1
END
CASE MWAIT, mwait, U, 0, 0, f_monitor, VEC_DONE, 6
    mwait
END
CASE MWAIT, wakes, K, 0, 0, f_monitor
    call WAIT
    mov XAX, XSI
    xor ecx, ecx
    xor edx, edx
    monitor
    xor eax, eax
    sti
    mwait
    cli
    cmp dword ptr [ticks - DBASE], 0
    setnz al
    movzx eax, al
END
CASE PAUSE, pause, KU
    pause
END

; ==== control transfer ===================================================================
CASE FAR_CALL, memory, KU, A+C      ; CS as the call pushed it, and the stack afterwards
    mov XWORD ptr [XSI], @far - CBASE
    mov [XSI + WORD_BYTES], bp
    mov XDX, XSP
    XCALLF [XSI]
    sub dx, sp
    movzx ecx, dx
    jmp @out
@far:
    movzx eax, word ptr [FSP + WORD_BYTES]
    XRETF
@out:
    nop
END
CASE FAR_CALL, kernel-segment, U
    mov XWORD ptr [XSI], 0
    mov word ptr [XSI + WORD_BYTES], KCODE
    XCALLF [XSI]
END
CASE FAR_CALL, user-segment, K
    mov XWORD ptr [XSI], 0
    mov word ptr [XSI + WORD_BYTES], UCODE
    XCALLF [XSI]
END
CASE FAR_CALL, null, KU
    XCALLF [XSI]
END
CASE FAR_CALL, call-gate, KU, A+B+C ; to the kernel: its CS and SS, and the caller's CS
    mov word ptr [XSI + WORD_BYTES], GATE_SEL + 3
    XCALLF [XSI]
END
CASE FAR_JMP, memory, KU, A
    mov XWORD ptr [XSI], @far - CBASE
    mov [XSI + WORD_BYTES], bp
    XJMPF [XSI]
    ud2
@far:
    mov eax, cs
END
CASE FAR_JMP, absent, KU
    mov word ptr [XSI + WORD_BYTES], ABSENT_CODE_SEL + 3
    XJMPF [XSI]
END
CASE FAR_JMP, data-segment, KU
    mov word ptr [XSI + WORD_BYTES], UDATA
    XJMPF [XSI]
END
CASE FAR_JMP, kernel-segment, U
    mov word ptr [XSI + WORD_BYTES], KCODE
    XJMPF [XSI]
END
.if BITS < 64
.macro DIRECT_FAR row, label, insn, mode, selector
CASE \row, \label, \mode, A
    \insn \selector, @far - CBASE
    ud2
@far:
    mov eax, cs
END
.endm
DIRECT_FAR FAR_CALL, direct-kernel, XCALLF, K, CASE_KCODE
DIRECT_FAR FAR_CALL, direct-user, XCALLF, U, CASE_UCODE
DIRECT_FAR FAR_JMP, direct-kernel, XJMPF, K, CASE_KCODE
DIRECT_FAR FAR_JMP, direct-user, XJMPF, U, CASE_UCODE
.endif
CASE FAR_RET, same-ring, KU, A+C
    mov XDX, XSP
    push XBP
    mov XAX, @back - CBASE
    push XAX
    XRETF
    ud2
@back:
    mov eax, cs
    sub dx, sp
    movzx ecx, dx
END
CASE FAR_RET, immediate, KU, A+C
    mov XDX, XSP
    push XAX
    push XAX
    push XBP
    mov XAX, @back - CBASE
    push XAX
    XRETF_IMM 2 * WORD_BYTES
    ud2
@back:
    mov eax, cs
    sub dx, sp
    movzx ecx, dx
END
CASE FAR_RET, to-user, K, A+B+C
    mov eax, UDATA
    push FAX
    mov FAX, FSP
    push FAX
    mov eax, CASE_UCODE
    push FAX
    mov eax, @user - CBASE
    push FAX
    FRETF
@user:
    mov eax, cs
    mov ebx, ss
    mov ecx, ds                     ; a kernel segment does not survive the way out
END
CASE FAR_RET, to-kernel, U
    mov eax, CASE_KCODE
    push XAX
    xor eax, eax
    push XAX
    XRETF
END
CASE IRET, same-ring, K, A+C, FL_IF + FL_CF
    mov FDX, FSP
    PUSH_OLD_STACK
    mov eax, FL_IF + FL_CF + 2
    push XAX
    push XBP
    mov XAX, @back - CBASE
    push XAX
    XIRET
    ud2
@back:
    mov eax, cs
    lea ecx, [edx + 1]              ; no flag changes
    not ecx
    lea ecx, [esp + ecx + 2]        ; ESP - EDX
END
CASE IRET, same-ring-user, U, A, FL_IF + FL_CF
    PUSH_OLD_STACK
    mov eax, FL_CF + 2              ; IF and IOPL stay
    push XAX
    push XBP
    mov XAX, @back - CBASE
    push XAX
    XIRET
    ud2
@back:
    mov eax, cs
END
CASE IRET, to-user, K, A+B+C+D, FL_IF + 0x3000
    TO_USER FL_IF + 2
    mov eax, cs
    mov ebx, ss
    mov ecx, ds
    mov edx, es
END
CASE IRET, to-kernel, U
    PUSH_OLD_STACK
    mov eax, FL_IF + 2
    push XAX
    mov eax, CASE_KCODE
    push XAX
    xor eax, eax
    push XAX
    XIRET
END
CASE IRET, to-null, K
    PUSH_OLD_STACK
    mov eax, 2
    push XAX
    xor eax, eax
    push XAX
    push XAX
    XIRET
END
CASE IRET, to-absent, K
    PUSH_OLD_STACK
    mov eax, 2
    push XAX
    mov eax, KABSENT_SEL
    push XAX
    xor eax, eax
    push XAX
    XIRET
END
CASE INT_N, dpl3-gate, KU, A+B      ; the CS and the flags (IF, IOPL) it pushed
    int 0x82
    and ebx, 0x3200
END
CASE INT_N, dpl3-gate-if, K, A+B    ; IF is pushed as it was, cleared inside, and comes back
    sti
    int 0x82
    cli
    and ebx, 0x3200
END
CASE INT_N, keeps-flags, KU, 0, FL_IF
    int 0x82
END
CASE INT_N, dpl0-gate, KU, A
    int 0x83
END
CASE INT_N, absent-gate, KU
    int 0x84
END
CASE INT_N, exception-vector, KU    ; through a DPL-0 gate it is no #MF for user mode
    int 0x10
END
CASE INT_N, beyond-idt, KU
    int 0xf0
END
CASE INT3, breakpoint, KU
    int3
END
CASE INT1, icebp, KU                ; TCG would stop the whole machine
    NOT_UNDER_TCG
    .byte 0xf1
END
.if BITS < 64
CASE INTO, overflow, KU
    mov al, 0x7f
    add al, 1
    into
END
CASE INTO, no-overflow, KU
    xor eax, eax
    into
END
CASE BOUND, outside, KU             ; not in the table: an exception of its own
    mov dword ptr [XSI], 0
    mov dword ptr [XSI + 4], 0
    mov eax, 0x7fff
    bound XAX, [XSI]
END
CASE ARPL, raises-rpl, KU, A, 0x40
    mov eax, 8
    mov ecx, 3
    arpl ax, cx
END
.endif
CASE SYSENTER, sysenter, KU, A+B, FL_IF
    sysenter
END
CASE SYSEXIT, to-user, K, A+B
    mov FDX, user_target32
    mov FCX, user_stack_top
    sysexitl
END
CASE SYSEXIT, user, U
    sysexitl
END
CASE SYSEXIT, no-segment, K         ; IA32_SYSENTER_CS = 0
    mov ecx, 0x174
    xor eax, eax
    xor edx, edx
    wrmsr
    sysexitl
END
CASE SYSENTER, no-segment, K
    mov ecx, 0x174
    xor eax, eax
    xor edx, edx
    wrmsr
    sysenter
END
CASE VMCALL, vmcall, KU
    .byte 0x0f, 0x01, 0xc1
END
CASE VMMCALL, vmmcall, KU
    .byte 0x0f, 0x01, 0xd9
END

.if BITS < 64                       ; EFER.SCE is 0 here, and Intel has neither outside 64-bit mode
CASE SYSCALL, off, KU
    syscall
END
CASE SYSRET, off, KU
    sysretl
END
.endif

; ==== protection: not instructions of the table, but what user mode must not get round ========
.if BITS > 16
CASE PAGES, user-reads-kernel, U
    mov ecx, gdt
    mov al, [XCX]
END
CASE PAGES, user-writes-kernel, U
    mov ecx, gdt
    mov [XCX], al
END
CASE PAGES, user-runs-kernel, U
    mov ecx, vector_stubs
    jmp XCX
END
CASE PAGES, absent, KU
    mov ecx, absent_page
    mov al, [XCX]
END
CASE PAGES, write-read-only, KU
    mov ecx, read_only_page
    mov byte ptr [XCX], 1
END
.endif
