# SPDX-License-Identifier: GPL-2.0-or-later
# Virtual time. One number, nanoseconds since power-on, from one of two sources: the host's
# monotonic clock, or the work the vCPU has done (blocks executed), which repeats exactly.

cdef extern from "time.h" nogil:
    cdef struct timespec:
        long tv_sec
        long tv_nsec
    int clock_gettime(int clock, timespec *ts)
    int CLOCK_MONOTONIC

cdef inline uint64_t host_ns() noexcept nogil:
    cdef timespec ts
    clock_gettime(CLOCK_MONOTONIC, &ts)
    return <uint64_t>ts.tv_sec * 1000000000 + <uint64_t>ts.tv_nsec

cdef inline uint64_t virtual_ns(Vm *vm) noexcept nogil:
    if vm.deterministic:
        return vm.clock_base + vm.blocks * vm.ns_per_block
    return host_ns() - vm.clock_base

cdef inline uint64_t virtual_tsc(Vm *vm) noexcept nogil:
    """The TSC runs at 1 GHz (CPUID leaf 0x15 says so), so it is virtual time plus TSC_ADJUST."""
    return virtual_ns(vm) + vm.tsc_adjust

cdef inline void count_block(Vm *vm) noexcept nogil:
    """A block's worth of work was done: the deterministic clock goes on, to its deadline perhaps."""
    vm.blocks += 1
    if vm.blocks >= vm.block_deadline:
        vm.kick = 1
