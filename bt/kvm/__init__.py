# SPDX-License-Identifier: GPL-2.0-or-later
"""The host's own virtual machines, by the calls of /dev/kvm. No helper program, no library.

Read in this order: ``abi`` (numbers and layouts), ``device`` (opening it, and saying why not),
``cpuid`` (what the guest is told its processor can do), ``state`` (registers), ``paging`` and
``view`` (the guest as people and debuggers see it), ``kicker`` (getting the processor out of the
guest), ``vcpu`` (the run loop), ``exits``, ``hooks`` and ``debug`` (what it comes out
for), ``software`` (what
a KVM without hardware leaves undone).
"""
