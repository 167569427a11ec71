# SPDX-License-Identifier: GPL-2.0-or-later
"""The fetched guest: Debian's own Linux kernel with a busybox user land made here.

``fetch`` gets the kernel and busybox by package name with the host's apt, ``initramfs`` packs
busybox and the two files of ours (``init``, ``exit.S``) into the archive the kernel unpacks as its
root file system.
"""
