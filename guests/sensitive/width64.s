; SPDX-License-Identifier: GPL-2.0-or-later
; Names for the 64-bit cases, whose data and code offsets are linear addresses.
.equ BITS, 64
.equ DBASE, 0
.equ CBASE, 0
.equ WORD_BYTES, 8
.equ CASE_KCODE, KCODE
.equ CASE_UCODE, UCODE
.equ FAR_BYTES, 4
.define XAX rax
.define XBX rbx
.define XCX rcx
.define XDX rdx
.define XSI rsi
.define XDI rdi
.define XBP rbp
.define XSP rsp
.define FAX rax
.define FCX rcx
.define FDX rdx
.define FDI rdi
.define FSP rsp
.define FAR_WORD dword
.define FAR_AX eax
.define XWORD qword
.define XPUSHF pushfq
.define XPOPF popfq
.define XIRET iretq
.define XRETF retfq
.define XCALLF callfq
.define XJMPF jmpfq
.define FIRET iretq
.define FRETF retfq
.define OPUSHF pushfw
.define OPOPF popfw
.define OPUSH_A push ax
.define OPOP_A pop ax
.define WAIT wait_flat
