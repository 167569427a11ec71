; SPDX-License-Identifier: GPL-2.0-or-later
; The harness of the sensitive guests: runs every case of the table in kernel and in user mode and
; prints one line each. Width-neutral: main.s of the 64- and the 32-bit guest include it.
;
; A case is a few instructions in the `user` section (pages that user mode may execute) that end
; with INT 0x81; its record is in the `cases` section. The harness enters it by IRET with
;     XSI, XDI  two scratch buffers of 64 bytes, zeroed (offsets into DS)
;     XBP, XBX  the code and data selectors of the mode
;     other general registers 0, interrupts off in kernel mode, on (but none comes) in user mode
; and whatever vector arrives ends it: 0x81 is success, any other one is what the case shows.
; The line says which registers hold what, or the exception, its error code and where it was
; raised, as an offset from the case's start. What a case may have changed is then put back.
; Two vectors come back to the case instead: 0x82 (and 0x83, whose gate user mode may not use)
; returns the pushed CS in XAX and the pushed flags in XBX; the timer is counted.

.equ K, 1                       ; modes a case runs in
.equ U, 2
.equ KU, 3
.equ A, 1                       ; registers a case shows
.equ B, 2
.equ C, 4
.equ D, 8
.equ VEC_DONE, 0x81
.equ VEC_SKIPPED, 0x85          ; the case cannot be run on QEMU's TCG

; Fields of a record; guests/sensitive/manifest.py reads them too.
.equ R_ROW, 0
.equ R_LABEL, 4
.equ R_CODE, 8
.equ R_BITS, 12
.equ R_MODES, 16
.equ R_REGS, 20
.equ R_FLAGS, 24                ; mask of the flags shown; 0 = none
.equ R_FEATURE, 28              ; 0, or a feature record: see FEATURE
.equ R_KERNEL, 32               ; with a feature: the vector that must come in kernel mode
.equ R_USER, 36                 ; ... and in user mode
.equ R_SIZE, 40

.macro CASE row, label, modes, regs=0, flags=0, feature=0, kernel=VEC_DONE, user=VEC_DONE
.section cases
.long row_\@, label_\@, case_\@, BITS, \modes, \regs, \flags, \feature, \kernel, \user
.section names
row_\@: .asciz "\row"
label_\@: .asciz "\label"
.section user
.bits BITS
case_\@:
.equ case_start, case_\@
.endm
.macro END
    int VEC_DONE
.section text
.bits HARNESS_BITS
.endm

.macro NOT_UNDER_TCG
    cmp dword ptr [under_tcg - DBASE], 0
    je @run\@
    int VEC_SKIPPED
@run\@:
.endm

.macro UD_WITHOUT_XSAVE         ; QEMU hangs on a reserved bit of CR4 that must raise #GP
    mov eax, 1
    cpuid
    bt ecx, 26
    jc @run\@
    ud2
@run\@:
.endm

; A CPUID bit: such a case prints "as CPUID says" when the instruction raised #UD without the
; feature, or did what R_KERNEL / R_USER say (and, when it ran, left XAX = 1) with it.
.macro FEATURE leaf, register, bit
.long \leaf, \register, 1 << (\bit)
.endm
.section data
.align 8
; leaf, offset of the register in cpuid_out (EAX EBX ECX EDX), mask
f_smap: FEATURE 7, 4, 20
f_invpcid: FEATURE 7, 4, 10
f_rdpid: FEATURE 7, 8, 22
f_xsave: FEATURE 1, 8, 26
f_monitor: FEATURE 1, 8, 3
f_sep: FEATURE 1, 12, 11
f_rdtscp: FEATURE 0x80000001, 12, 27
cpuid_out: .space 16

.section text
.bits HARNESS_BITS
run_cases:
    mov dword ptr [current], cases_start
@next_case:
    cmp dword ptr [current], cases_end
    jae all_cases_done
    mov dword ptr [mode], K
@next_mode:
    mov ebx, [current]
    mov eax, [XBX + R_MODES]
    test eax, [mode]
    jz case_ended@skip
    call print_title
    call restore
    jmp enter_case
case_ended:                     ; the handlers come here, on the harness's stack
    call restore
    call print_result
@skip:
    shl dword ptr [mode], 1
    cmp dword ptr [mode], U
    jbe run_cases@next_mode
    add dword ptr [current], R_SIZE
    jmp run_cases@next_case
all_cases_done:
    PRINTLN "end of cases"
    mov al, 0
    jmp power_off

; "ROW.label 64-bit kernel:"
print_title:
    mov ebx, [current]
    mov esi, [XBX + R_ROW]
    call puts
    mov al, '.'
    call putc
    mov esi, [XBX + R_LABEL]
    call puts
    mov al, ' '
    call putc
    mov eax, [XBX + R_BITS]
    call putdec
    mov esi, text_kernel
    cmp dword ptr [mode], K
    je @mode
    mov esi, text_user
@mode:
    jmp puts

print_result:
    mov ebx, [current]
    mov eax, [XBX + R_FEATURE]
    test eax, eax
    jz print_outcome
    call has_feature            ; ZF = it is absent
    mov ecx, 6
    jz @expect
    mov ecx, [XBX + R_KERNEL]
    cmp dword ptr [mode], K
    je @expect
    mov ecx, [XBX + R_USER]
@expect:
    cmp ecx, [saved_vector]
    jne print_outcome
    cmp ecx, VEC_DONE
    jne @agrees
    cmp dword ptr [saved_ax], 1
    jne print_outcome
@agrees:
    PRINTLN " as CPUID says"
    ret

; EAX = feature record. ZF set when the CPU lacks it. Keeps XBX.
has_feature:
    push XBX
    mov esi, eax
    mov ecx, [XSI]
    and ecx, 0x80000000
    mov eax, ecx
    push XSI
    cpuid                       ; the highest leaf of this range
    pop XSI
    cmp eax, [XSI]
    jb @absent
    mov eax, [XSI]
    xor ecx, ecx
    push XSI
    cpuid
    pop XSI
    mov [cpuid_out], eax
    mov [cpuid_out + 4], ebx
    mov [cpuid_out + 8], ecx
    mov [cpuid_out + 12], edx
    pop XBX
    mov ecx, [XSI + 4]
    mov eax, [XCX + cpuid_out]
    test eax, [XSI + 8]
    ret
@absent:
    pop XBX
    xor eax, eax
    ret

; SHOW bit, text, variable: prints the register if the case (mask in ECX) shows it.
.macro SHOW bit, text, variable
    test ecx, \bit
    jz @hide\@
    PRINT \text
    mov XAX, [\variable]
    call puthex
@hide\@:
.endm

print_outcome:
    cmp dword ptr [saved_vector], VEC_DONE
    jne print_exception
    mov ecx, [XBX + R_REGS]
    or ecx, [XBX + R_FLAGS]
    jnz @values
    PRINTLN " done"
    ret
@values:
    mov ecx, [XBX + R_REGS]
    SHOW A, " ax=", saved_ax
    SHOW B, " bx=", saved_bx
    SHOW C, " cx=", saved_cx
    SHOW D, " dx=", saved_dx
    cmp dword ptr [XBX + R_FLAGS], 0
    je @no_flags
    PRINT " flags="
    mov XAX, [saved_flags]
    and eax, [XBX + R_FLAGS]
    call puthex
@no_flags:
    PRINTLN ""
    ret

; " #GP(0x0) at +0x5", " #PF(0x5) cr2=... at +..", " vector 0x83 at +.."
print_exception:
    mov eax, [saved_vector]
    cmp eax, 20
    jb @named
    cmp eax, VEC_SKIPPED
    jne @vector
    PRINTLN " not run"
    ret
@vector:
    PRINT " vector "
    call puthex
    jmp @where
@named:
    PRINT " #"
    lea esi, [XAX + XAX * 2]
    add esi, vector_names
    call puts
    mov ecx, 0x27d00            ; the vectors with an error code: 8 10-14 17
    bt ecx, eax
    jnc @where
    mov al, '('
    call putc
    mov XAX, [saved_error]
    call puthex
    mov al, ')'
    call putc
    cmp dword ptr [saved_vector], 14
    jne @where
    PRINT " cr2="
    mov XAX, [saved_cr2]
    call puthex
@where:
    PRINT " at +"
    mov XAX, [saved_ip]
    mov ecx, [XBX + R_CODE]
    sub XAX, XCX
    cmp dword ptr [XBX + R_BITS], 16
    jne @flat
    add eax, user_start         ; where 16-bit code segments begin
@flat:
    call puthex
    PRINTLN ""
    ret

; ---- exceptions and interrupts -------------------------------------------------------------
; Every vector's 16-byte stub pushes an error code where the CPU does not, and its number.
.macro STUB number
.align 16
.if (\number) < 8
    push 0
.endif
.if (\number) == 9
    push 0
.endif
.if (\number) > 14
.if (\number) != 17
    push 0
.endif
.endif
.if (\number) < 128
    push \number
.else                           ; a byte would be sign-extended
.byte 0x68
.long \number
.endif
    jmp common_entry
.endm
.align 16
vector_stubs:
.equ vector, 0
.rept 0x90
STUB vector
.equ vector, vector + 1
.endr

.equ FRAME_VECTOR, 9 * WORD_BYTES       ; above seven registers, DS and ES
common_entry:
    push XAX
    push XBX
    push XCX
    push XDX
    push XSI
    push XDI
    push XBP
    mov eax, ds
    push XAX
    mov eax, es
    push XAX
    mov eax, KDATA
    mov ds, eax
    mov es, eax
    cld
    mov eax, [XSP + FRAME_VECTOR]
    cmp eax, 0x20
    je timer
    cmp eax, 0x82
    je service
    cmp eax, 0x83
    je service
    mov XSI, XSP                ; a case has ended: keep its frame, drop its stack
    mov XDI, saved
    mov ecx, 14
    rep XMOVS
    mov FAX, cr2
    mov [saved_cr2], FAX
    mov eax, KDATA
    mov ss, eax
    mov XSP, stack_top
    jmp case_ended

service:
    mov XAX, [XSP + FRAME_VECTOR + 3 * WORD_BYTES]
    mov [XSP + 8 * WORD_BYTES], XAX
    mov XAX, [XSP + FRAME_VECTOR + 4 * WORD_BYTES]
    mov [XSP + 7 * WORD_BYTES], XAX
    jmp back_to_case

; The first tick's place (as an offset into the case) and the number of ticks are the case's to
; read; ticks at a place where none may be taken are counted apart.
timer:
    mov XAX, [XSP + FRAME_VECTOR + 2 * WORD_BYTES]
    mov ebx, [current]
    cmp dword ptr [XBX + R_BITS], 16
    jne @flat
    add eax, user_start
@flat:
    cmp eax, [forbidden_ip]
    jne @allowed
    inc dword ptr [forbidden_ticks]
@allowed:
    cmp dword ptr [ticks], 0
    jne @not_first
    mov ecx, [XBX + R_CODE]
    sub eax, ecx
    mov [first_tick_ip], eax
@not_first:
    inc dword ptr [ticks]
    mov al, 0x20
    out 0x20, al
back_to_case:
    pop XAX
    mov es, eax
    pop XAX
    mov ds, eax
    pop XBP
    pop XDI
    pop XSI
    pop XDX
    pop XCX
    pop XBX
    pop XAX
    add XSP, 2 * WORD_BYTES
    XIRET

; 8259 pair at 0x20 and 0x28, all masked; 8254 channel 0 at 1 kHz.
init_timer:
    mov al, 0x11
    out 0x20, al
    out 0xa0, al
    mov al, 0x20
    out 0x21, al
    mov al, 0x28
    out 0xa1, al
    mov al, 4
    out 0x21, al
    mov al, 2
    out 0xa1, al
    mov al, 1
    out 0x21, al
    out 0xa1, al
    mov al, 0xff
    out 0x21, al
    out 0xa1, al
    mov al, 0x34
    out 0x43, al
    mov al, 1193 & 0xff
    out 0x40, al
    mov al, 1193 >> 8
    out 0x40, al
    ret

.section user
; For kernel cases: wait (interrupts off, line masked) until the timer's request is pending, then
; unmask it. Clobbers AL. One copy a code width, which cases call as WAIT.
.macro WAIT_FOR_TIMER name
\name:
    mov al, 0x0a                ; OCW3: reads of port 0x20 give the request register
    out 0x20, al
@again\@:
    in al, 0x20
    test al, 1
    jz @again\@
    mov al, 0xfe
    out 0x21, al
    ret
.endm

.section data
text_kernel: .asciz "-bit kernel:"
text_user: .asciz "-bit user:"
vector_names: .asciz "DE", "DB", "02", "BP", "OF", "BR", "UD", "NM", "DF", "09", "TS", "NP", "SS"
.asciz "GP", "PF", "15", "MF", "AC", "MC", "XM"
.align 8
current: .long 0
mode: .long 0
saved:                          ; in the order of common_entry's pushes, last one first
.space 2 * WORD_BYTES
saved_bp: .space WORD_BYTES
saved_di: .space WORD_BYTES
saved_si: .space WORD_BYTES
saved_dx: .space WORD_BYTES
saved_cx: .space WORD_BYTES
saved_bx: .space WORD_BYTES
saved_ax: .space WORD_BYTES
saved_vector: .space WORD_BYTES
saved_error: .space WORD_BYTES
saved_ip: .space WORD_BYTES
saved_cs: .space WORD_BYTES
saved_flags: .space WORD_BYTES
saved_cr2: .space WORD_BYTES
idt_pointer:
.word idt_end - idt - 1
.long idt, 0

; What cases may read and write in both modes.
.section udata
.align 16
scratch: .space 64
scratch2: .space 64
ticks: .long 0
first_tick_ip: .long 0
forbidden_ip: .long 0
forbidden_ticks: .long 0
under_tcg: .long 0              ; 1 = the CPU is QEMU's TCG
.space 0x1000 - 148
user_stack: .space 0x1000
user_stack_top:
.section text
