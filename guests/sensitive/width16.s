; SPDX-License-Identifier: GPL-2.0-or-later
; Names for the 16-bit cases. Data offsets count from `udata`, code offsets from `user`; the stack
; segment stays flat and 32 bits wide, so only operands are narrow. F names are the full width.
.equ BITS, 16
.equ DBASE, udata_start
.equ CBASE, user_start
.equ WORD_BYTES, 2
.equ CASE_KCODE, K16_SEL
.equ CASE_UCODE, U16_SEL + 3
.equ FAR_BYTES, 2
.define XAX ax
.define XBX bx
.define XCX cx
.define XDX dx
.define XSI si
.define XDI di
.define XBP bp
.define XSP sp
.define FAX eax
.define FCX ecx
.define FDX edx
.define FDI edi
.define FSP esp
.define FAR_WORD word
.define FAR_AX ax
.define XWORD word
.define XPUSHF pushfw
.define XPOPF popfw
.define XIRET iretw
.define XRETF retfw
.define XCALLF callfw
.define XJMPF jmpfw
.define FIRET iretd
.define FRETF retfd
.define OPUSHF pushfd
.define OPOPF popfd
.define OPUSH_A push eax
.define OPOP_A pop eax
.define WAIT wait_16
