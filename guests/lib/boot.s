; SPDX-License-Identifier: GPL-2.0-or-later
; What every guest starts with: the multiboot header, and two macros for mode changes.
;
; A multiboot loader enters `start` in 32-bit protected mode: flat segments whose descriptors we
; must not rely on, paging off, interrupts off, EAX = 0x2badb002 (Multiboot 0.6.96, section 3.2).

.include "priv.s"

.equ EXIT_PORT, 0x501           ; a byte written here ends the machine with that status
.equ COM1, 0x3f8

.equ CR0_PE, 1 << 0
.equ CR0_MP, 1 << 1
.equ CR0_TS, 1 << 3
.equ CR0_NE, 1 << 5
.equ CR0_WP, 1 << 16
.equ CR0_PG, 1 << 31
.equ CR4_PSE, 1 << 4
.equ CR4_PAE, 1 << 5
.equ MSR_EFER, 0xc0000080
.equ EFER_SCE, 1 << 0
.equ EFER_LME, 1 << 8
.equ EFER_LMA, 1 << 10
.equ PTE_P, 1                   ; present
.equ PTE_W, 2                   ; writable
.equ PTE_U, 4                   ; user
.equ PTE_PS, 0x80               ; in a directory: a large page
.equ FL_CF, 1 << 0
.equ FL_TF, 1 << 8
.equ FL_IF, 1 << 9

.section text
.bits 32
.align 4
.long 0x1badb002, 3, -(0x1badb002 + 3)  ; magic, flags (page-aligned modules, memory map), checksum

; Segment descriptor: \base and \limit as the CPU sees them, \access (P DPL S type), \flags (G D L).
.macro DESCRIPTOR base, limit, access, flags
.word (\limit) & 0xffff, (\base) & 0xffff
.byte ((\base) >> 16) & 0xff, \access, ((\limit) >> 16) & 0xf | (\flags) << 4, ((\base) >> 24) & 0xff
.endm
