; SPDX-License-Identifier: GPL-2.0-or-later
; Register names for 64-bit guests that share width-neutral code (lib/uart.s).
.define XAX rax
.define XBX rbx
.define XCX rcx
.define XDX rdx
.define XSI rsi
.define XDI rdi
.define XBP rbp
.define XSP rsp
.define XWORD qword
.equ WORD_HEX, 16
.equ WORD_BYTES, 8

