; SPDX-License-Identifier: GPL-2.0-or-later
; From 32-bit protected mode to 64-bit mode (Intel SDM 3A, 10.8.5): PAE, page tables, EFER.LME,
; then paging. ENTER_LONG_MODE continues at \target in 64-bit code with flat data segments; the
; page tables map the first \gigabytes GiB one to one with 2 MiB pages, supervisor only.
; Clobbers EAX EBX ECX EDX EDI. Needs \pml4: (2 + \gigabytes) zeroed pages in bss.
.macro ENTER_LONG_MODE pml4, gigabytes, gdt_pointer, code, data, target
    LOAD_GDT32 \gdt_pointer
    mov eax, \pml4 + 0x1000 + PTE_P + PTE_W + PTE_U
    mov [\pml4], eax
    mov edi, \pml4 + 0x1000     ; page-directory-pointer table
    mov eax, \pml4 + 0x2000 + PTE_P + PTE_W + PTE_U
    mov ecx, \gigabytes
@pdpt\@:
    mov [edi], eax
    add eax, 0x1000
    add edi, 8
    dec ecx
    jnz @pdpt\@
    mov edi, \pml4 + 0x2000     ; page directories: consecutive 2 MiB pages
    mov eax, PTE_P + PTE_W + PTE_PS
    mov ecx, \gigabytes * 512
@pd\@:
    mov [edi], eax
    add eax, 0x200000
    add edi, 8
    dec ecx
    jnz @pd\@
    READ_CR32 4
    or eax, CR4_PAE
    WRITE_CR32 4
    mov eax, \pml4
    WRITE_CR32 3
    READ_MSR32 MSR_EFER
    or eax, EFER_LME
    WRITE_MSR32 MSR_EFER
    READ_CR32 0
    or eax, CR0_PG + CR0_WP
    WRITE_CR32 0                ; long mode is active, still in a 32-bit code segment
    FAR_JUMP32 \code, @wide\@
.bits 64
@wide\@:
    LOAD_SEGMENTS \data
    jmp \target
.endm
