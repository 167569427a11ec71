; SPDX-License-Identifier: GPL-2.0-or-later
; Register names for 32-bit guests that share width-neutral code (lib/uart.s).
.define XAX eax
.define XBX ebx
.define XCX ecx
.define XDX edx
.define XSI esi
.define XDI edi
.define XBP ebp
.define XSP esp
.define XWORD dword
.equ WORD_HEX, 8
.equ WORD_BYTES, 4
