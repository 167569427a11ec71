; SPDX-License-Identifier: GPL-2.0-or-later
; From 32-bit protected mode to 64-bit mode (Intel SDM 3A, 10.8.5): PAE, page tables, EFER.LME,
; then paging. ENTER_LONG_MODE continues at \target in 64-bit code with flat data segments; the
; page tables map the first \gigabytes GiB one to one with 2 MiB pages, supervisor only.
; Clobbers EAX ECX EDX EDI. Needs \pml4: (2 + \gigabytes) zeroed pages in bss.
.macro ENTER_LONG_MODE pml4, gigabytes, gdt_pointer, code, data, target
    lgdt [\gdt_pointer]
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
    mov eax, cr4
    or eax, CR4_PAE
    mov cr4, eax
    mov eax, \pml4
    mov cr3, eax
    mov ecx, MSR_EFER
    rdmsr
    or eax, EFER_LME
    wrmsr
    mov eax, cr0
    or eax, CR0_PG + CR0_WP
    mov cr0, eax                ; long mode is active, still in a 32-bit code segment
    jmpf \code, @wide\@
.bits 64
@wide\@:
    mov eax, \data
    mov ds, ax
    mov es, ax
    mov fs, ax
    mov gs, ax
    mov ss, ax
    jmp \target
.endm
