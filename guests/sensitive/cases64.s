; SPDX-License-Identifier: GPL-2.0-or-later
; Cases that exist in 64-bit code only; see cases.s.
CASE SYSCALL, syscall, KU, A+B+C+D, FL_IF
    mov rdx, @next
    stc
    syscall
@next:
    nop
END
CASE SYSCALL, sce-off, K
    SET_MSR MSR_EFER, EFER_LME + EFER_LMA
    syscall
END
CASE SYSRET, to-user-64, K, A+B, FL_IF + FL_CF
    mov rcx, @user
    mov r11d, FL_IF + FL_CF + 2
    sysretq
@user:
    mov eax, cs
    mov ebx, ss
END
CASE SYSRET, to-user-32, K, A+B, FL_IF + FL_CF
    mov ecx, user_target32
    mov r11d, FL_IF + FL_CF + 2
    sysretl
END
CASE SYSRET, user, U
    mov rcx, @next
    sysretq
@next:
    nop
END
CASE SYSRET, sce-off, K
    SET_MSR MSR_EFER, EFER_LME + EFER_LMA
    sysretq
END
CASE SYSEXIT, to-user-64, K, A+B
    mov rdx, @user
    mov rcx, rsp
    sysexitq
@user:
    mov eax, cs
    mov ebx, ss
END
CASE SWAPGS, swaps, K, A+B
    SET_MSR MSR_GS_BASE, 0x2000
    swapgs
    mov ecx, MSR_GS_BASE
    rdmsr
    mov ebx, eax
    mov ecx, MSR_KERNEL_GS_BASE
    rdmsr
END
CASE SWAPGS, access, K, A+B
    mov dword ptr [rsi], 0x77
    mov dword ptr [rdi], 0x88
    SET_MSR MSR_GS_BASE, scratch
    SET_MSR MSR_KERNEL_GS_BASE, scratch2
    mov eax, gs:[0]
    mov ebx, eax
    swapgs
    mov eax, gs:[0]
END
CASE SWAPGS, user, U
    swapgs
END
CASE RDMSR, efer, KU, A
    mov ecx, MSR_EFER
    rdmsr
    and eax, EFER_SCE + EFER_LME + EFER_LMA
END
CASE RDMSR, star, K, A+D
    mov ecx, MSR_STAR
    rdmsr
END
CASE WRMSR, lstar, K, A+D
    mov ecx, MSR_LSTAR
    mov eax, 0x89abcdef
    mov edx, 0xffff8000
    wrmsr
    xor eax, eax
    xor edx, edx
    rdmsr
END
CASE WRMSR, fmask, K, A
    SET_MSR MSR_FMASK, 0x47700
    xor eax, eax
    rdmsr
END
CASE WRMSR, fs-base, K, A+B
    mov dword ptr [rsi], 0x99
    SET_MSR MSR_FS_BASE, scratch
    rdmsr
    sub eax, scratch
    mov ebx, eax
    mov eax, fs:[0]
END
CASE WRMSR, gs-base, K, A
    mov dword ptr [rsi + 8], 0x9a
    SET_MSR MSR_GS_BASE, scratch
    mov eax, gs:[8]
END
CASE MOV_FROM_CR, cr8, KU, A
    mov rax, cr8
END
CASE MOV_TO_CR, cr8, K, A
    mov eax, 5
    mov cr8, rax
    xor eax, eax
    mov rax, cr8
END
CASE MOV_TO_CR, cr8-user, U
    mov cr8, rax
END
CASE MOV_TO_SEG, gs-clears-base, K, A
    mov dword ptr [rsi], 0x9b
    SET_MSR MSR_GS_BASE, scratch
    mov eax, UDATA
    mov gs, ax
    mov ecx, MSR_GS_BASE
    rdmsr
END
CASE MOV_FROM_SEG, cs-quad, KU, A
    mov rax, -1
    mov rax, cs
END
CASE SMSW, quad, KU, A
    smsw rax
    and eax, 0x8001003f
END
CASE SLDT, quad, KU, A
    mov rax, -1
    .byte 0x48, 0x0f, 0x00, 0xc0    ; sldt rax
    and eax, 0xffff
END
CASE STR, quad, KU, A
    mov rax, -1
    .byte 0x48, 0x0f, 0x00, 0xc8    ; str rax
END
CASE IRET, iretd, K, A              ; the 32-bit frame, in 64-bit code
    mov rdx, rsp
    sub rsp, 20
    mov dword ptr [rsp], @back
    mov [rsp + 4], ebp
    mov dword ptr [rsp + 8], 2
    mov [rsp + 12], edx
    mov [rsp + 16], ebx
    iretd
    ud2
@back:
    mov eax, cs
END
CASE IRET, to-compatibility, K, A+B, FL_IF
    push UDATA
    push rsp
    push FL_IF + 2
    push UCODE32
    mov eax, user_target32
    push rax
    iretq
END
CASE IRET, to-other-stack, K, A     ; the stack pointer is popped in 64-bit mode always
    push rbx
    mov eax, user_stack_top - 0x100
    push rax
    push 2
    push rbp
    mov rax, @back
    push rax
    iretq
@back:
    mov rax, rsp
    sub rax, user_stack_top
    neg eax
END
CASE FAR_CALL, memory-32, KU, A
    mov dword ptr [rsi], @far
    mov [rsi + 4], bp
    callfd [rsi]
    jmp @out
@far:
    mov eax, [rsp + 4]
    retfd
@out:
    nop
END
CASE FAR_JMP, memory-32, KU, A
    mov dword ptr [rsi], @far
    mov [rsi + 4], bp
    jmpfd [rsi]
    ud2
@far:
    mov eax, cs
END
CASE FAR_JMP, call-gate, KU, A      ; a jump through a gate changes no ring
    mov word ptr [rsi + 8], GATE_SEL + 3
    jmpfq [rsi]
END
CASE FAR_RET, to-compatibility, K, A+B
    push UDATA
    push rsp
    push UCODE32
    mov eax, user_target32
    push rax
    retfq
END
