; SPDX-License-Identifier: GPL-2.0-or-later
; Names for the 32-bit cases, whose data and code offsets are linear addresses.
.equ BITS, 32
.equ DBASE, 0
.equ CBASE, 0
.equ WORD_BYTES, 4
.equ CASE_KCODE, KCODE
.equ CASE_UCODE, UCODE
.equ FAR_BYTES, 4
.define XAX eax
.define XBX ebx
.define XCX ecx
.define XDX edx
.define XSI esi
.define XDI edi
.define XBP ebp
.define XSP esp
.define FAX eax
.define FCX ecx
.define FDX edx
.define FDI edi
.define FSP esp
.define FAR_WORD dword
.define FAR_AX eax
.define XWORD dword
.define XPUSHF pushfd
.define XPOPF popfd
.define XIRET iretd
.define XRETF retfd
.define XCALLF callfd
.define XJMPF jmpfd
.define FIRET iretd
.define FRETF retfd
.define OPUSHF pushfw
.define OPOPF popfw
.define OPUSH_A push ax
.define OPOP_A pop ax
.define WAIT wait_flat
