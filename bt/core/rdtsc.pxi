# SPDX-License-Identifier: GPL-2.0-or-later
# RDTSC and RDTSCP as a call out of the block, for engine hvm.
#
# As an intercepted instruction it costs a search for its own address, the way out of the translated
# code and through Unicorn's main loop, twice what the exit itself takes; Linux has one in every
# system call. The call comes first, and makes the same exit. Where it does not fit (`emit_try`) and
# where the instruction faults, Unicorn's own follows.
#
# The other engines have a hook of Unicorn's, which needs none of that (`rip_is_known`) and returns
# into the same block: for them a call, with the look-up of another block behind it, was tried, and
# is slower.

cdef int call_rdtsc(Vm *vm, uint64_t rip, uint64_t unused) noexcept nogil:
    """1: the exit is made, and the vCPU goes on at env.eip. 0: Unicorn's turn."""
    cdef Env *env = vm.env
    if env.cr[4] & CR4_TSD and env.hflags & HF_CPL or not vm.hvm.wanted[VMEXIT_RDTSC] or \
            vm.debug_step | vm.stepping | vm.late_step:
        return 0
    env.eip = rip
    hvm_sync(vm)
    audit(vm)
    hvm_exit(vm, VMEXIT_RDTSC, 0)
    return 1
