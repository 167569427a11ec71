# SPDX-License-Identifier: GPL-2.0-or-later
#
# /ring1/exit STATUS: end the machine with an exit status. /init executes it as its last act.
#
# The status goes to the exit device, a byte-wide I/O port at 0x501 (QEMU's isa-debug-exit with
# iobase=0x501,iosize=1 is the same device). A shell could reach a port through /dev/port, but
# Debian's cloud kernel is built without it (CONFIG_DEVPORT), so this asks for the one port with
# ioperm(2) and writes it itself. System call numbers: arch/x86/entry/syscalls/syscall_64.tbl.
# Assembled by initramfs.py; position-independent, no data, no stack use but argv.

    mov     rsi, [rsp+16]           # argv[1], decimal digits
    xor     ebx, ebx
digit:
    movzx   eax, byte ptr [rsi]
    test    eax, eax
    jz      drain
    imul    ebx, ebx, 10
    lea     ebx, [rbx+rax-48]
    inc     rsi
    jmp     digit

    # Output may still sit in the serial drivers' buffers, and the machine is about to vanish.
    # ioctl(fd, TCSBRK, 1) is tcdrain(3). Not a terminal: an error, and nothing to wait for.
drain:
    mov     ebp, 1
next_fd:
    mov     edi, ebp
    mov     esi, 0x5409             # TCSBRK
    mov     edx, 1
    mov     eax, 16                 # ioctl
    syscall
    inc     ebp
    cmp     ebp, 3
    jb      next_fd

    mov     edi, 0x501
    mov     esi, 1                  # one port
    mov     edx, 1                  # allowed
    mov     eax, 173                # ioperm
    syscall
    test    eax, eax
    jnz     power_off
    mov     edx, 0x501
    mov     eax, ebx
    out     dx, al

    # Still here: a machine without the exit device. Power off without a status.
power_off:
    mov     edi, 0xfee1dead         # LINUX_REBOOT_MAGIC1
    mov     esi, 0x28121969         # LINUX_REBOOT_MAGIC2
    mov     edx, 0x4321fedc         # LINUX_REBOOT_CMD_POWER_OFF
    mov     eax, 169                # reboot
    syscall
    ud2                             # only without CAP_SYS_BOOT, which PID 1 has
