; SPDX-License-Identifier: GPL-2.0-or-later
; tasks: a small 64-bit operating system. Four user tasks in ring 3, each in an address space of
; its own, preempted by the timer at 100 Hz:
;   A  waits in a busy loop (only preemption lets the others run), calls the kernel with `syscall`
;   B  the same, but with `int 0x80`, and checks that preemption kept all its registers
;   C  sleeps instead; its stack and data are demand-paged; ends by touching kernel memory: killed
;   D  executes a privileged instruction: killed
; The lines are in a fixed order (a task may print only when its turn comes), so the output is the
; same at any speed. Ends with status 0, or 1 when a check of its own failed.
;
; How the kernel is built: it runs with interrupts off except in the idle loop. Entries from user
; mode push straight into the current task's frame, because TSS.RSP0 points at its end; resuming
; a task means pointing RSP at the frame, popping, and IRETQ or SYSRETQ.
.include "../lib/boot.s"
.include "kernel.s"
