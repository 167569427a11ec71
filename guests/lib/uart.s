; SPDX-License-Identifier: GPL-2.0-or-later
; Printing through COM1, polled, and ending the machine. Width-neutral: the guest defines
; XAX .. XSI (and WORD_HEX, hex digits in a register) for its mode before it includes this.
; All of these keep every register; none needs interrupts. Ports are used by the macros of priv.s.

; 115200 baud, 8N1, FIFOs on, no interrupts.
uart_init:
    push XAX
    push XDX
    mov dx, COM1 + 3
    mov al, 0x80                ; DLAB: the next two ports are the divisor
    OUT_AL
    mov dx, COM1
    mov al, 1
    OUT_AL
    mov dx, COM1 + 1
    mov al, 0
    OUT_AL
    mov dx, COM1 + 3
    mov al, 3
    OUT_AL
    mov dx, COM1 + 2
    mov al, 7
    OUT_AL
    pop XDX
    pop XAX
    ret

; Print the character in AL.
putc:
    push XDX
    push XAX
    mov dx, COM1 + 5
@wait:
    IN_AL
    test al, 0x20               ; LSR.THRE: room for a byte
    jz @wait
    pop XAX
    mov dx, COM1
    OUT_AL
    pop XDX
    ret

; Print the NUL-terminated string at XSI.
puts:
    push XAX
    push XSI
@next:
    mov al, byte ptr [XSI]
    inc XSI
    test al, al
    jz @end
    call putc
    jmp @next
@end:
    pop XSI
    pop XAX
    ret

; Print XAX in hexadecimal with "0x", without leading zeros.
puthex:
    push XAX
    push XBX
    push XCX
    mov XBX, XAX
    mov al, '0'
    call putc
    mov al, 'x'
    call putc
    mov ecx, WORD_HEX * 4 - 4
@skip:                          ; drop leading zeros, but keep the last digit
    mov XAX, XBX
    shr XAX, cl
    test al, 0xf
    jnz @digits
    test ecx, ecx
    jz @digits
    sub ecx, 4
    jmp @skip
@digits:
    mov XAX, XBX
    shr XAX, cl
    and al, 0xf
    add al, '0'
    cmp al, '9'
    jbe @put
    add al, 'a' - '9' - 1
@put:
    call putc
    sub ecx, 4
    jns @digits
    pop XCX
    pop XBX
    pop XAX
    ret

; Print XAX in decimal.
putdec:
    push XAX
    push XBX
    push XCX
    push XDX
    xor ecx, ecx
    mov ebx, 10
@divide:
    xor edx, edx
    div XBX
    push XDX
    inc ecx
    test XAX, XAX
    jnz @divide
@put:
    pop XAX
    add al, '0'
    call putc
    dec ecx
    jnz @put
    pop XDX
    pop XCX
    pop XBX
    pop XAX
    ret

; End the machine with status AL once everything printed has left the UART.
power_off:
    push XAX
    mov dx, COM1 + 5
@drain:
    IN_AL
    test al, 0x40               ; LSR.TEMT: the shift register is empty too
    jz @drain
    pop XAX
    mov dx, EXIT_PORT
    OUT_AL
@dead:                          ; no exit device: stay down
    CLI
    HLT
    jmp @dead

; PRINT "text": a literal. PRINTLN adds the line end.
.macro PRINT text
    push XSI
    mov XSI, @str\@
    call puts
    pop XSI
.section data
@str\@: .asciz \text
.section text
.endm
.macro PRINTLN text
    push XSI
    mov XSI, @str\@
    call puts
    pop XSI
.section data
@str\@: .ascii \text
.asciz "\n"
.section text
.endm
