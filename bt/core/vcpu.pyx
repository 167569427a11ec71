# SPDX-License-Identifier: GPL-2.0-or-later
# cython: language_level=3, freethreading_compatible=False
"""The compiled core: one vCPU on Unicorn, its memory, its events and its exits.

This file is the door for Python; the work is in the files it includes, in this order, which is also
the order to read them in. ARCHITECTURE.md says how they fit together.
"""

include "unicorn.pxi"
include "layout.pxi"
include "time.pxi"
include "state.pxi"
include "pages.pxi"
include "mmu.pxi"
include "record.pxi"
include "flags.pxi"
include "segments.pxi"
include "exits.pxi"
include "events.pxi"
include "decode.pxi"
include "emulate.pxi"
include "transfers.pxi"
include "io.pxi"
include "xen.pxi"
include "xen_pages.pxi"
include "fold.pxi"
include "tcg.pxi"
include "stopcheck.pxi"
include "call.pxi"
include "syscall.pxi"
include "translate.pxi"
include "debug.pxi"
include "hooks.pxi"
include "pv.pxi"
include "npt.pxi"
include "hvm.pxi"
include "iret.pxi"
include "rdtsc.pxi"
include "kicker.pxi"
include "temporaries.pxi"
include "run.pxi"
include "selftest.pxi"

cdef extern from *:
    """
    /* Exported by libunicorn though not declared in its headers: QEMU's own INVLPG. */
    extern void tlb_flush_page_x86_64(void *cpu, unsigned long long address);
    """
    void tlb_flush_page "tlb_flush_page_x86_64" (void *cpu, uint64_t address) nogil

cimport cython
from cpython.buffer cimport (PyBUF_WRITABLE, PyBuffer_Release, PyObject_GetBuffer, Py_buffer)

from bt.core import counters as _names
from bt.core import svm as _svm
from bt.core.hookable import check_row as _check_row
from bt.machine.cpu import TranslatorCounts as _TranslatorCounts
from translator import vcpupage as _page
from translator.sensitive import BY_NAME as _ROWS
from translator.sensitive import TABLE as _TABLE

PG_VIF = _page.VIF // 8
PG_VIOPL = _page.VIOPL // 8
PG_PENDING = _page.PENDING // 8
PG_SAVE0 = _page.SAVE0 // 8
PG_SAVE1 = _page.SAVE1 // 8
PG_KGS = _page.KGSBASE // 8
PG_CS = _page.CS // 8
PG_SS = _page.SS // 8
PG_CR0 = _page.CR0 // 8
PG_CR2 = _page.CR2 // 8
PG_CR3 = _page.CR3 // 8
PG_CR4 = _page.CR4 // 8
row_cpuid = _ROWS["CPUID"].id
row_rdtsc = _ROWS["RDTSC"].id
row_rdtscp = _ROWS["RDTSCP"].id
row_int_n = _ROWS["INT_N"].id
row_int3 = _ROWS["INT3"].id
row_int1 = _ROWS["INT1"].id
row_xsetbv = _ROWS["XSETBV"].id
row_invd = _ROWS["INVD"].id
memset(all_rows, 1, sizeof(all_rows))

# What `Vcpu.run` returns.
KICKED = STOP_KICK
HALTED = STOP_HLT
SHUTDOWN = STOP_SHUTDOWN
VOID = STOP_VOID
STUCK = STOP_STUCK
UNSUPPORTED = STOP_UNSUPPORTED
CPU_ERROR = STOP_CPU
DEBUGGED = STOP_DEBUG

#: Names of the exits that are not rows of the sensitive table, by counter index from 32 on; the
#: counters 0-31 are CPU exceptions by vector.
PSEUDO_EXITS = {
    EXIT_SOFTINT: "software interrupt", EXIT_SYSCALL: "SYSCALL", EXIT_SYSENTER: "SYSENTER",
    EXIT_IRQ: "interrupt injected", EXIT_KICK: "quantum used up",
    EXIT_PAGE_FAULT: "page fault injected", EXIT_TLB_FILL: "translation",
    EXIT_TLB_FLUSH: "TLB flush", EXIT_SMC: "code page written", EXIT_CODE_PAGE: "page became code",
    EXIT_ABSENT: "absent memory", EXIT_BLOCK: "block scanned",
    EXIT_BLOCK_AGAIN: "block translated again", EXIT_STALE_TRAP: "stale trap",
    EXIT_IO_PYTHON: "port access to a device", EXIT_STUB: "stub installed",
    EXIT_UNSTUB: "stub taken back", EXIT_PAGE_INVALIDATE: "page invalidation",
    EXIT_MMIO: "mmio", EXIT_NOT_THERE: "page not there yet",
    EXIT_READONLY: "protected memory written", EXIT_FIRST_WRITE: "page first written",
}

# Memory-unit exits that hardware would make by nested paging.
_NESTED_FAULTS = (EXIT_SMC, EXIT_CODE_PAGE, EXIT_ABSENT, EXIT_MMIO, EXIT_NOT_THERE, EXIT_READONLY,
                  EXIT_FIRST_WRITE)

# Exit numbers of `Vcpu.set_hook`, and what goes to and fro.
HOOK_PSEUDO = ROWS
HYPERCALL = HOOK_HYPERCALL
PORT_READ = HOOK_PORT_READ
PORT_WRITE = HOOK_PORT_WRITE
BEFORE = HOOK_BEFORE
AFTER = HOOK_AFTER
GO = HOOK_GO
SKIP = HOOK_SKIP
INJECT = HOOK_INJECT
NO_INJECT = LIMIT_NO_INJECT
NO_SKIP = LIMIT_NO_SKIP

WINDOW_ADDRESS = WINDOW
VCPU_PAGE_ADDRESS = WINDOW

_GPRS = ("rax", "rcx", "rdx", "rbx", "rsp", "rbp", "rsi", "rdi", "r8", "r9", "r10", "r11", "r12",
         "r13", "r14", "r15")

cdef void install_handlers(Vm *vm):
    """The handler of each row, by the row's name. A row without one could never be rewritten."""
    cdef int i
    for i in range(ROWS):
        vm.handlers[i] = do_undefined
    vm.handlers[_ROWS["CLI"].id] = do_cli
    vm.handlers[_ROWS["STI"].id] = do_sti
    vm.handlers[_ROWS["PUSHF"].id] = do_pushf
    vm.handlers[_ROWS["POPF"].id] = do_popf
    vm.handlers[_ROWS["IRET"].id] = do_iret
    vm.handlers[_ROWS["HLT"].id] = do_hlt
    vm.handlers[_ROWS["SGDT"].id] = do_sgdt
    vm.handlers[_ROWS["SIDT"].id] = do_sidt
    vm.handlers[_ROWS["SLDT"].id] = do_sldt
    vm.handlers[_ROWS["STR"].id] = do_str
    vm.handlers[_ROWS["LGDT"].id] = do_lgdt
    vm.handlers[_ROWS["LIDT"].id] = do_lidt
    vm.handlers[_ROWS["LLDT"].id] = do_lldt
    vm.handlers[_ROWS["LTR"].id] = do_ltr
    vm.handlers[_ROWS["LAR"].id] = do_lar
    vm.handlers[_ROWS["LSL"].id] = do_lsl
    vm.handlers[_ROWS["VERR"].id] = do_verr
    vm.handlers[_ROWS["VERW"].id] = do_verw
    vm.handlers[_ROWS["MOV_FROM_SEG"].id] = do_mov_from_seg
    vm.handlers[_ROWS["MOV_TO_SEG"].id] = do_mov_to_seg
    vm.handlers[_ROWS["PUSH_SEG"].id] = do_push_seg
    vm.handlers[_ROWS["POP_SEG"].id] = do_pop_seg
    vm.handlers[_ROWS["LOAD_FAR_PTR"].id] = do_load_far_ptr
    vm.handlers[_ROWS["SWAPGS"].id] = do_swapgs
    vm.handlers[_ROWS["SMSW"].id] = do_smsw
    vm.handlers[_ROWS["LMSW"].id] = do_lmsw
    vm.handlers[_ROWS["CLTS"].id] = do_clts
    vm.handlers[_ROWS["MOV_FROM_CR"].id] = do_mov_from_cr
    vm.handlers[_ROWS["MOV_TO_CR"].id] = do_mov_to_cr
    vm.handlers[_ROWS["MOV_FROM_DR"].id] = do_mov_from_dr
    vm.handlers[_ROWS["MOV_TO_DR"].id] = do_mov_to_dr
    vm.handlers[_ROWS["RDMSR"].id] = do_rdmsr
    vm.handlers[_ROWS["WRMSR"].id] = do_wrmsr
    vm.handlers[_ROWS["RDPMC"].id] = do_rdpmc
    vm.handlers[_ROWS["RDTSC"].id] = do_rdtsc
    vm.handlers[_ROWS["RDTSCP"].id] = do_rdtscp
    vm.handlers[_ROWS["CPUID"].id] = do_cpuid
    vm.handlers[_ROWS["PAUSE"].id] = do_pause
    vm.handlers[_ROWS["INVLPG"].id] = do_invlpg
    vm.handlers[_ROWS["WBINVD"].id] = do_nothing_privileged
    vm.handlers[_ROWS["INVD"].id] = do_nothing_privileged
    vm.handlers[_ROWS["IN"].id] = do_in
    vm.handlers[_ROWS["OUT"].id] = do_out
    vm.handlers[_ROWS["INS"].id] = do_ins
    vm.handlers[_ROWS["OUTS"].id] = do_outs
    vm.handlers[_ROWS["FAR_CALL"].id] = do_far_call
    vm.handlers[_ROWS["FAR_JMP"].id] = do_far_jmp
    vm.handlers[_ROWS["FAR_RET"].id] = do_far_ret
    vm.handlers[_ROWS["INT_N"].id] = do_int
    vm.handlers[_ROWS["INT1"].id] = do_int1
    vm.handlers[_ROWS["SYSRET"].id] = do_sysret
    vm.handlers[_ROWS["SYSEXIT"].id] = do_sysexit

# Rows whose instruction faults at CPL 3 only because the CPU's own tables are empty.
_ASSISTED = ("MOV_TO_SEG", "POP_SEG", "LOAD_FAR_PTR", "FAR_CALL", "FAR_JMP", "FAR_RET", "IRET",
             "RDTSC", "RDTSCP")
# Engine hvm: `hvm_assist` says which.
_HVM_ASSISTED = ("MOV_TO_SEG", "POP_SEG", "LOAD_FAR_PTR", "FAR_CALL", "FAR_JMP", "FAR_RET", "IRET",
                 "LAR", "LSL", "VERR", "VERW", "INS", "OUTS")


# The collector may not clear a Vcpu in a cycle: it would release the buffers behind the running
# engine, and behind the objects that exported them. They are released in __dealloc__.
@cython.no_gc_clear
cdef class Vcpu:
    """One virtual CPU with its memory.

    ``ram`` is a bt.machine.ram.Ram, ``bus`` a bt.machine.bus.Bus (its tables are shared, not
    copied), ``policy`` a bt.machine.cpu.CpuPolicy. This is a bt.machine.cpu.VirtualCpu, and more.

    ``translate``: engine bt; without it the guest runs untranslated (engine trap).
    ``deterministic``: virtual time is executed work. ``hot``: executions after which a trap is
    offered to ``hot_site(gva, row, bits, code)``; 0 never. ``intercepts``: engine hvm; the #VMEXIT
    codes that are intercepted. ``asynchronous``: stops may come from another thread; None asks the
    self-test.

    Not thread-safe, apart from ``kick``.
    """

    cdef Vm *vm
    cdef Kicker kicker
    cdef bint kicker_started
    cdef Py_buffer ram_buffer
    cdef Py_buffer read_kind_buffer
    cdef Py_buffer write_kind_buffer
    cdef Py_buffer value_buffer
    cdef Py_buffer mmio_buffer
    cdef Py_buffer fifo_buffer
    cdef Py_buffer fifo_data_buffer
    cdef object fifo_finish
    cdef readonly object copies_map
    cdef readonly object window_map
    cdef Py_buffer copies_buffer
    cdef Py_buffer window_buffer
    cdef object failure
    cdef object acknowledge
    cdef object cr8_crossed
    cdef object port_read
    cdef object port_write
    cdef object mmio_read
    cdef object mmio_write
    cdef object cpuid
    cdef object read_msr
    cdef object write_msr
    cdef object hot_site
    cdef object trace
    cdef object hypercall
    cdef object io_allowed
    cdef object pv_console
    cdef object pv_shutdown
    #: Called for hooked exits: see `set_hook`.
    cdef public object exit_hook
    cdef readonly bint asynchronous

    def __cinit__(self, ram, bus, policy, *, bint translate=True, bint deterministic=False,
                  int hot=64, hot_site=None, intercepts=None, asynchronous=None,
                  bint audit=False):
        import mmap
        cdef Vm *vm
        cdef uc_hook hook
        cdef uint64_t pages
        self.vm = vm = <Vm *>calloc(1, sizeof(Vm))
        if vm == NULL:
            raise MemoryError
        vm.owner = <void *>self
        vm.kicker = &self.kicker
        self.failure = None
        self.acknowledge = policy.acknowledge
        self.cr8_crossed = policy.cr8_crossed
        self.port_read = bus.read
        self.port_write = bus.write
        self.mmio_read = bus.read_mmio
        self.mmio_write = bus.write_mmio
        self.cpuid = policy.cpuid
        self.read_msr = policy.read_msr
        self.write_msr = policy.write_msr
        self.hot_site = hot_site
        self.trace = policy.trace
        # The mapping itself, not the view: the garbage collector may clear a view before us.
        PyObject_GetBuffer(ram.view.obj, &self.ram_buffer, PyBUF_WRITABLE)
        PyObject_GetBuffer(bus.read_kind, &self.read_kind_buffer, PyBUF_WRITABLE)
        PyObject_GetBuffer(bus.write_kind, &self.write_kind_buffer, PyBUF_WRITABLE)
        PyObject_GetBuffer(bus.value, &self.value_buffer, PyBUF_WRITABLE)
        PyObject_GetBuffer(bus.mmio_ranges, &self.mmio_buffer, PyBUF_WRITABLE)
        PyObject_GetBuffer(bus.fifo.state, &self.fifo_buffer, PyBUF_WRITABLE)
        PyObject_GetBuffer(bus.fifo.buffer, &self.fifo_data_buffer, PyBUF_WRITABLE)
        self.fifo_finish = bus.fifo.finish
        self.copies_map = mmap.mmap(-1, COPY_PAGES * 4096)
        self.window_map = mmap.mmap(-1, WINDOW_SIZE)
        PyObject_GetBuffer(self.copies_map, &self.copies_buffer, PyBUF_WRITABLE)
        PyObject_GetBuffer(self.window_map, &self.window_buffer, PyBUF_WRITABLE)
        vm.ram = <uint8_t *>self.ram_buffer.buf
        vm.ram_size = ram.size
        vm.hole, vm.hole_size = ram.hole
        vm.mmio = <uint64_t *>self.mmio_buffer.buf
        vm.copies = <uint8_t *>self.copies_buffer.buf
        vm.window = <uint8_t *>self.window_buffer.buf
        vm.page = <uint64_t *>vm.window
        vm.port_read_kind = <uint8_t *>self.read_kind_buffer.buf
        vm.port_write_kind = <uint8_t *>self.write_kind_buffer.buf
        vm.port_value = <uint8_t *>self.value_buffer.buf
        vm.fifo = <uint64_t *>self.fifo_buffer.buf
        vm.fifo_data = <uint8_t *>self.fifo_data_buffer.buf
        pages = vm.ram_size >> 12
        vm.code = <CodePage **>calloc(pages, sizeof(CodePage *))
        vm.write_gen = <uint32_t *>calloc(pages, sizeof(uint32_t))
        vm.written_at = <uint64_t *>calloc(pages, sizeof(uint64_t))
        vm.copy_used = <uint8_t *>calloc(COPY_PAGES, 1)
        vm.kept_bytes = <uint8_t *>calloc(KEPT_PAGES, 4096)
        vm.stub_at = <Stub **>calloc(WINDOW_SIZE, sizeof(Stub *))
        if vm.code == NULL or vm.write_gen == NULL or vm.written_at == NULL or \
                vm.copy_used == NULL or vm.kept_bytes == NULL or vm.stub_at == NULL:
            raise MemoryError
        vm.stub_next = WINDOW_STUBS
        vm.gen = GEN_STEP
        vm.flush_gen = 1
        vm.translate = translate
        vm.deterministic = deterministic
        vm.ns_per_block = 5
        vm.block_deadline = NEVER
        vm.hot = hot if translate and hot_site is not None else 0
        vm.audit = audit
        vm.hardware_code = -1
        vm.folding = 1
        self.make_cpu()
        layout_check(vm)
        guard_temporaries(vm)
        flags_check(vm)
        put_stops_in_line(vm)
        put_syscalls_in_line(vm)
        tries_check(vm)
        if asynchronous is None:
            asynchronous = not deterministic and stops_are_exact(vm)
        self.asynchronous = asynchronous
        by_block = deterministic or audit or not asynchronous
        if by_block:
            vm.stops_in_line = 0
        if intercepts is not None:
            self.make_hvm(intercepts)
        else:
            hide_sysenter(vm.env)
            sysenter_check(vm)
        install_handlers(vm)
        for row in _TABLE:
            vm.kernel_rows[row.id] = row.kernel
            vm.user_rows[row.id] = row.user
        for name in _ASSISTED if vm.hvm == NULL else _HVM_ASSISTED:
            vm.assist_rows[_ROWS[name].id] = 1
        self.hook(UC_HOOK_INTR, <void *>on_interrupt)
        self.hook(UC_HOOK_INSN_INVALID, <void *>on_invalid)
        self.hook(UC_HOOK_TLB_FILL, <void *>on_fill)
        self.hook(UC_HOOK_EDGE_GENERATED, <void *>on_block)
        # Addresses that no RAM has as its PA: the hook must not touch stores to it.
        for first, last in ((0, PA_RAM - 1), (PA_ABSENT, <uint64_t>-1)):
            self.check(uc_hook_add(vm.uc, &hook, UC_HOOK_MEM_FETCH_PROT, <void *>on_no_fetch, vm,
                                   <uint64_t>first, <uint64_t>last), "hook")
        self.hook_instruction(UC_X86_INS_SYSCALL, <void *>on_syscall)
        self.hook_instruction(UC_X86_INS_SYSENTER, <void *>on_sysenter)
        self.hook_instruction(UC_X86_INS_CPUID, <void *>on_cpuid)
        self.hook_instruction(UC_X86_INS_RDTSC, <void *>on_rdtsc)
        self.hook_instruction(UC_X86_INS_RDTSCP, <void *>on_rdtscp)
        self.hook_instruction(UC_X86_INS_IN, <void *>on_in)
        self.hook_instruction(UC_X86_INS_OUT, <void *>on_out)
        if by_block:
            self.hook(UC_HOOK_BLOCK, <void *>on_executed_block)
            if vm.hvm != NULL:
                vm.hvm.by_block = 1
        self.start_kicker()
        if vm.hvm == NULL:
            self.warm_up()
        if not deterministic:
            vm.clock_base = host_ns()

    cdef make_cpu(self):
        """Open the engine: long mode, virtual TLB, RAM and the VMM's own pages mapped."""
        cdef Vm *vm = self.vm
        self.check(uc_open(UC_ARCH_X86, UC_MODE_64, &vm.uc), "open")
        self.check(uc_ctl_set_cpu_model(vm.uc, UC_CPU_X86_HASWELL), "CPU model")
        self.check(uc_ctl_exits_enable(vm.uc), "exits")
        self.check(uc_ctl_tlb_mode(vm.uc, UC_TLB_VIRTUAL), "virtual TLB")
        layout_find(vm.uc, &vm.env, &vm.cpu)
        self.check(uc_mem_map_ptr(vm.uc, PA_RAM, vm.ram_size, 7, vm.ram), "RAM")
        self.check(uc_mem_map_ptr(vm.uc, PA_COPY, COPY_PAGES * 4096, 7, vm.copies), "copies")
        self.check(uc_mem_map_ptr(vm.uc, PA_WINDOW, WINDOW_SIZE, 7, vm.window), "stub window")
        self.check(uc_mmio_map(vm.uc, PA_ABSENT, ABSENT_SIZE, <void *>on_absent_read, vm,
                               <void *>on_absent_write, vm), "absent memory")

    cdef make_hvm(self, intercepts):
        """Switch AMD-V on, and write what of the VMCB and its maps never changes."""
        cdef Vm *vm = self.vm
        cdef Hvm *hvm
        hvm = <Hvm *>calloc(1, sizeof(Hvm))
        if hvm == NULL:
            raise MemoryError
        vm.npt = <uint8_t *>calloc(vm.ram_size >> 12, 1)
        if vm.npt == NULL:
            free(hvm)
            raise MemoryError
        self.check(uc_mmio_map(vm.uc, PA_READONLY, ABSENT_SIZE, <void *>on_readonly_read, vm,
                               <void *>on_readonly_write, vm), "read-only memory")
        hvm.vmcb = <char *>vm.window + HVM_VMCB
        vm.hvm = hvm
        memset(vm.window, 0, WINDOW_SIZE)           # the self-tests used it
        memcpy(vm.window + HVM_STUB, b"\x0f\x01\xda\x0f\x01\xd8", 6)    # VMLOAD, VMRUN
        memset(vm.window + HVM_MSRPM, 0xff, 0x2000)
        memset(vm.window + HVM_IOPM, 0xff, 0x3000)
        uc_ctl_flush_tb(vm.uc)
        env_int(vm.env, OFF_IS_INT)[0] = 0
        msr_fields(vm.uc, vm.env, &hvm.fields)
        write_msr(vm.uc, MSR_VM_HSAVE_PA, PA_WINDOW + HVM_SAVE)
        hvm_check(vm)
        vm.iretq_call = <void *>plain_iretq
        vm.rdtsc_call = <void *>call_rdtsc
        self.set_intercepts(intercepts)

    def set_intercepts(self, codes):
        """Engine hvm: intercept these #VMEXIT codes and no others, from the next entry on.

        The vCPU does not check that its guest can still be kept: bt/core/svm.py knows which codes
        must be among them.
        """
        cdef Hvm *hvm = self.vm.hvm
        cdef int code
        memset(hvm.asked, 0, sizeof(hvm.asked))
        for code in codes:
            if not 0 <= code < VMEXIT_COUNT:
                raise ValueError(f"no intercept for #VMEXIT {code:#x}")
            hvm.asked[code] = 1
        self.intercept_hooked()

    cdef intercept_hooked(self):
        """What is hooked must exit, besides what was asked for."""
        cdef Hvm *hvm = self.vm.hvm
        cdef int code, number
        memcpy(hvm.wanted, hvm.asked, sizeof(hvm.wanted))
        for row in _TABLE:
            if self.vm.hooked[row.id]:
                for code in _svm.for_row(row.name):
                    hvm.wanted[code] = 1
        for number in range(32):
            if self.vm.hooked[ROWS + number]:
                hvm.wanted[VMEXIT_EXCEPTION + number] = 1
        hvm.launch = 1
        if self.vm.running:
            leave(self.vm)

    cdef check(self, uc_err err, str what):
        if err != UC_ERR_OK:
            raise RuntimeError(f"unicorn: {what}: {uc_strerror(err).decode()}")

    cdef hook(self, int kind, void *callback):
        cdef uc_hook handle
        self.check(uc_hook_add(self.vm.uc, &handle, kind, callback, self.vm, 1, 0), "hook")

    cdef hook_instruction(self, int instruction, void *callback):
        cdef uc_hook handle
        self.check(uc_hook_add(self.vm.uc, &handle, UC_HOOK_INSN, callback, self.vm, 1, 0,
                               instruction), "hook")

    cdef start_kicker(self):
        cdef pthread_condattr_t attr
        self.kicker.vm = self.vm
        self.kicker.deadline = NEVER
        self.kicker.asynchronous = self.asynchronous
        pthread_condattr_init(&attr)
        pthread_condattr_setclock(&attr, CLOCK_MONOTONIC)
        pthread_mutex_init(&self.kicker.lock, NULL)
        pthread_cond_init(&self.kicker.changed, &attr)
        pthread_cond_init(&self.kicker.woken, &attr)
        if pthread_create(&self.kicker.thread, NULL, kicker_main, &self.kicker) != 0:
            raise RuntimeError("cannot start the timer thread")
        self.kicker_started = True

    cdef warm_up(self):
        """Run one block of our own: Unicorn reports new blocks only when one ran before."""
        cdef Vm *vm = self.vm
        cdef int translate = vm.translate
        memset(vm.window, 0, WINDOW_STUBS)          # the self-tests used it
        # JMP to the next instruction, INT3. Only a block that ends in an orderly way is remembered
        # as the one that "ran before"; one that ends in an exception is not.
        memcpy(vm.window + WINDOW_STUBS, b"\xeb\x00\xcc", 3)
        vm.stub_next += 64
        vm.window_on = 1
        vm.warming = 1
        vm.translate = 0
        vm.efer = EFER_LMA | EFER_LME | EFER_NXE
        vm.cr0 = CR0_PG | CR0_PE
        vm.cr4 = CR4_PAE
        vm.cr3 = vm.ram_size        # no tables: nothing but the window is mapped
        enter_flat(vm, R_CS, 1, FLAT_CODE | D_L)
        enter_flat(vm, R_SS, 1, FLAT_DATA)
        update_features(vm)
        set_cpl(vm, 0, 2)
        vm.env.eip = WINDOW + WINDOW_STUBS
        run_guest(vm)
        if vm.stop != STOP_KICK:
            raise RuntimeError("the CPU did not run its first block")
        vm.stop = 0
        vm.warming = 0
        vm.translate = translate
        flush_tlb(vm)
        memset(vm.exits, 0, sizeof(vm.exits))
        vm.recent_at = 0

    def __dealloc__(self):
        cdef Vm *vm = self.vm
        if vm == NULL:
            return
        if self.kicker_started:
            pthread_mutex_lock(&self.kicker.lock)
            self.kicker.quit = 1
            pthread_cond_broadcast(&self.kicker.changed)
            pthread_mutex_unlock(&self.kicker.lock)
            with nogil:
                pthread_join(self.kicker.thread, NULL)
        if vm.uc != NULL:
            uc_close(vm.uc)
        self.free_pages()
        PyBuffer_Release(&self.ram_buffer)
        PyBuffer_Release(&self.read_kind_buffer)
        PyBuffer_Release(&self.write_kind_buffer)
        PyBuffer_Release(&self.value_buffer)
        PyBuffer_Release(&self.mmio_buffer)
        PyBuffer_Release(&self.fifo_buffer)
        PyBuffer_Release(&self.fifo_data_buffer)
        PyBuffer_Release(&self.copies_buffer)
        PyBuffer_Release(&self.window_buffer)
        free(vm)

    cdef free_pages(self):
        cdef Vm *vm = self.vm
        cdef CodePage *page
        cdef Site *site
        cdef uint64_t i
        cdef Stub *last = NULL
        if vm.code != NULL:
            for i in range(vm.ram_size >> 12):
                page = vm.code[i]
                if page != NULL:
                    while page.sites != NULL:
                        site = page.sites
                        page.sites = site.page_next
                        free(site)
                    free(page)
            free(vm.code)
        for i in range(KEPT_PAGES):
            free(vm.kept[i])
        free(vm.kept_bytes)
        while vm.free_pages != NULL:
            page = vm.free_pages
            vm.free_pages = page.next_free
            free(page)
        if vm.stub_at != NULL:
            for i in range(WINDOW_SIZE):
                if vm.stub_at[i] != NULL and vm.stub_at[i] != last:
                    last = vm.stub_at[i]
                    free(last)
            free(vm.stub_at)
        if vm.xen != NULL:
            free(vm.xen.kind)
            free(vm.xen.count)
            free(vm.xen.pinned)
            free(vm.xen.shared)
            free(vm.xen)
        recorder_free(vm.recorder)
        free(vm.write_gen)
        free(vm.written_at)
        if vm.pv != NULL:
            free(vm.pv.traps)
            free(vm.pv)
        free(vm.hvm)
        free(vm.npt)
        free(vm.copy_used)

    # Running ----------------------------------------------------------------------------------

    def enter(self, entry):
        """Set the vCPU to a loader's EntryState (bt/boot/entry.py)."""
        cdef Vm *vm = self.vm
        cdef Env *env = vm.env
        cdef int bits = entry.bits
        cdef uint32_t code, data
        cdef int seg
        memset(env.regs, 0, sizeof(env.regs))
        for name, value in entry.regs.items():
            env.regs[_GPRS.index(name)] = value & 0xffffffffffffffff
        env.regs[RSP] = entry.rsp
        vm.gdt.base = entry.gdt_base
        vm.gdt.limit = entry.gdt_limit
        vm.idt.base = 0
        vm.idt.limit = 0x3ff if bits == 16 else 0
        vm.pat = 0x0007040600070406
        vm.dr[6] = 0xffff0ff0
        vm.dr[7] = 0x400
        vm.cr0 = CR0_ET | (0 if bits == 16 else CR0_PE)
        vm.cr4 = 0
        vm.efer = 0
        vm.cr3 = 0
        code = FLAT_CODE
        data = FLAT_DATA
        if bits == 64:
            vm.cr0 |= CR0_PG
            vm.cr4 = CR4_PAE
            vm.efer = EFER_LME | EFER_LMA
            vm.cr3 = entry.cr3
            code |= D_L
        elif bits == 32:
            code |= D_B
        else:
            data &= ~<uint32_t>D_B
        for seg in range(6):
            enter_flat(vm, seg, entry.ds, data)
        enter_flat(vm, R_CS, entry.cs, code)
        env.eip = entry.rip
        if bits == 16:
            for seg in range(6):
                env.segs[seg].selector = 0
                env.segs[seg].limit = 0xffff
        vm.cpl = 0
        if vm.hvm != NULL:
            # As after a reset. QEMU aborts over a TR that holds no TSS, so it always holds one.
            vm.tr.flags = D_P | 0x900
            hvm_publish(vm)
            npt_loaded(vm)
            vm.hvm.launch = 1
        update_features(vm)
        publish_crs(vm)
        if bits == 16:
            update_hflags(vm)
            set_flags(vm, 2)
        else:
            set_cpl(vm, 0, 2)
        flush_tlb(vm)

    def enter_xen(self, domain, hypercall, cpuid, io_allowed):
        """Make the vCPU a Xen PV domain's, from a domain builder's result (bt/boot/xen.py).

        ``hypercall(number, a, b, c, d, e) -> int`` does the hypercalls that are not compiled;
        ``cpuid`` is the domain's CPUID policy; ``io_allowed(port, size) -> bool`` says whether user
        code may access a port.
        Pins the initial page tables, which proves that they are what the guest may have. Raises
        RuntimeError if they are not.
        """
        cdef Vm *vm = self.vm
        cdef Xen *x
        cdef uint64_t frames = vm.ram_size >> 12
        entry = domain.entry
        self.enter(entry)
        vm.xen = x = <Xen *>calloc(1, sizeof(Xen))
        if x == NULL:
            raise MemoryError
        self.hypercall = hypercall
        self.cpuid = cpuid
        memset(vm.cpuids, 0, sizeof(vm.cpuids))
        self.io_allowed = io_allowed
        x.nr_pages = domain.nr_pages
        x.kind = <uint8_t *>calloc(frames, 1)
        x.count = <uint32_t *>calloc(frames, sizeof(uint32_t))
        x.pinned = <uint8_t *>calloc(frames, 1)
        x.shared = <uint8_t *>calloc(frames - x.nr_pages + 1, 1)
        if x.kind == NULL or x.count == NULL or x.pinned == NULL or x.shared == NULL:
            raise MemoryError
        for mfn in domain.frames.readonly:
            x.shared[mfn - x.nr_pages] = 1
        for mfn in domain.frames.writable:
            x.shared[mfn - x.nr_pages] = 2
        x.m2p = <uint64_t *>(vm.ram + <uint64_t>domain.m2p_gpa)
        x.m2p_entry = domain.m2p_l4_entry
        x.vcpu_info = domain.shared_info_gpa
        vm.cr0 = CR0_PG | CR0_PE | CR0_WP | CR0_NE | CR0_MP | CR0_ET
        vm.cr4 = CR4_PAE | CR4_OSFXSR | CR4_OSXMMEXCPT
        vm.efer = EFER_SCE | EFER_LME | EFER_LMA | EFER_NXE
        xen_flat_kernel(vm)
        for seg in (R_DS, R_ES, R_FS, R_GS):
            segment_null(vm, seg, 0)
        update_features(vm)
        xen_make_gdt(vm)
        vm.iretq_call = <void *>plain_iretq
        set_cpl(vm, 0, FL_IF | 2)
        x.kernel_sp = entry.rsp
        x.kernel_root = entry.cr3 >> 12
        if type_get(vm, x.kernel_root, PGT_L4) != 0 or type_get(vm, x.kernel_root, PGT_L4) != 0:
            raise RuntimeError("the domain builder's page tables are not valid")
        x.pinned[x.kernel_root] = 1
        flush_tlb(vm)

    def xen_set_vcpu_info(self, uint64_t gpa):
        """vcpu_info has moved (VCPUOP_register_vcpu_info)."""
        if gpa > self.vm.ram_size - 64:
            raise ValueError("vcpu_info outside RAM")
        self.vm.xen.vcpu_info = gpa

    def xen_share(self, uint64_t mfn, bint writable):
        """Let the guest map a frame of the VMM (grant table frames)."""
        if self.vm.xen.nr_pages <= mfn < self.vm.ram_size >> 12:
            self.vm.xen.shared[mfn - self.vm.xen.nr_pages] = 2 if writable else 1

    def xen_block(self):
        """SCHEDOP_poll and such: sleep until an event is pending. From a hypercall only."""
        self.vm.halted = 1
        self.vm.stop = STOP_HLT
        leave(self.vm)

    def xen_wake(self):
        """Go on after `xen_block` without an event (a poll's timeout)."""
        self.vm.halted = 0

    def xen_get_writable(self, uint64_t mfn):
        """Hold one of the guest's pages to being writable; False if it is something else."""
        return type_get(self.vm, mfn, PGT_WRITABLE) == 0

    def xen_read_kernel(self, uint64_t gva, int length):
        """read_virtual through the kernel's page tables, whatever mode the guest is in."""
        cdef Vm *vm = self.vm
        cdef uint64_t root = vm.cr3
        vm.cr3 = vm.xen.kernel_root << 12
        vm.gen += GEN_STEP
        try:
            return self.read_virtual(gva, length)
        finally:
            vm.cr3 = root
            vm.gen += GEN_STEP

    def xen_counters(self):
        """([calls by hypercall number], page-table writes emulated, event upcalls)."""
        cdef Xen *x = self.vm.xen
        if x == NULL:
            return [0] * HC_COUNT, 0, 0
        return [x.calls[i] for i in range(HC_COUNT)], x.table_writes, x.upcalls

    def xen_frame(self, uint64_t mfn):
        """(type, references) of a frame: 0 none, 1-4 page table, 5 descriptors, 6 writable."""
        if mfn >= self.vm.xen.nr_pages:
            return None
        return self.vm.xen.kind[mfn], self.vm.xen.count[mfn]

    def xen_holders(self):
        """What holds frames to a type by itself, for checks: (kernel root, user root, pinned frames,
        frames of the GDT, GPA of vcpu_info); roots and frames are mfns, 0 for no root."""
        cdef Xen *x = self.vm.xen
        return (x.kernel_root, x.user_root, [m for m in range(x.nr_pages) if x.pinned[m]],
                [x.gdt[i] for i in range(x.gdt_frames)], x.vcpu_info)

    def run(self, deadline_ns=None):
        """Run the guest until virtual time ``deadline_ns``, a kick, a HLT or its death.

        Returns KICKED, HALTED, SHUTDOWN, VOID, STUCK, UNSUPPORTED or CPU_ERROR; raises what a
        callback raised.
        """
        cdef Vm *vm = self.vm
        cdef int why
        self.set_deadline_running(deadline_ns, 1)
        vm.stop = 0
        vm.python_wants = 0
        vm.running = 1
        if vm.hit and vm.hit == linear(vm, vm.env.eip):
            vm.debug_step = STEP_OVER       # told about already
        vm.hit = 0
        with nogil:
            run_guest(vm)
        vm.running = 0
        vm.debug_step = STEP_NONE
        why = vm.stop
        vm.stop = 0
        pthread_mutex_lock(&self.kicker.lock)
        self.kicker.running = 0
        pthread_mutex_unlock(&self.kicker.lock)
        if self.failure is not None:
            failure = self.failure
            self.failure = None
            raise failure
        return why

    # Debugging --------------------------------------------------------------------------------

    def step(self, bint interrupts=True):
        """Run one instruction. DEBUGGED, or another reason of `run`.

        To take an interrupt is a step too; without ``interrupts`` only a halted vCPU takes one, and
        is HALTED still if there is none.
        """
        cdef Vm *vm = self.vm
        cdef int why
        vm.stop = 0
        vm.python_wants = 0
        vm.hit = 0
        vm.running = 1
        vm.step_irqs = interrupts
        vm.debug_step = STEP_WANTED
        with nogil:
            run_guest(vm)
        vm.running = 0
        why = STOP_DEBUG if vm.debug_step == STEP_DONE and vm.stop == STOP_HLT else vm.stop
        vm.debug_step = STEP_NONE
        vm.stop = 0
        if self.failure is not None:
            failure = self.failure
            self.failure = None
            raise failure
        return why

    def set_breakpoint(self, uint64_t gva):
        """Stop before the instruction at linear address ``gva``, in any address space.

        Raises ValueError when there are too many.
        """
        cdef Vm *vm = self.vm
        if is_break(vm, gva):
            return
        if vm.n_breaks == MAX_BREAKS:
            raise ValueError(f"more than {MAX_BREAKS} breakpoints")
        break_add(vm, gva)

    def clear_breakpoint(self, uint64_t gva):
        """Undo `set_breakpoint`; nothing happens if there is none."""
        break_remove(self.vm, gva)

    def lose_time(self, uint64_t ns):
        """So much host time did not pass for the guest: somebody looked at it meanwhile."""
        if not self.vm.deterministic:
            self.vm.clock_base += ns

    cdef set_deadline_running(self, deadline_ns, int running):
        cdef Vm *vm = self.vm
        cdef uint64_t host = NEVER
        cdef uint64_t at
        if deadline_ns is not None:
            at = deadline_ns if deadline_ns > 0 else 0
            if vm.deterministic:
                if at <= virtual_ns(vm):
                    vm.block_deadline = vm.blocks + 1
                else:
                    vm.block_deadline = (at - vm.clock_base + vm.ns_per_block - 1) \
                        // vm.ns_per_block
            else:
                host = at + vm.clock_base
        elif vm.deterministic:
            vm.block_deadline = NEVER
        if vm.hvm != NULL and vm.intr and running and not vm.deterministic:
            # Should the guest open its interrupts where the CPU does not look (STI; RET).
            host = min(host, host_ns() + WINDOW_POLL_NS)
        kicker_arm(&self.kicker, host, running)

    def set_deadline(self, deadline_ns):
        """Change the deadline of the `run` in progress (from a callback: a device set a timer)."""
        self.set_deadline_running(deadline_ns, 1)

    def wait(self, deadline_ns=None):
        """Sleep until virtual time ``deadline_ns`` or a kick: what a halted CPU does.

        The deterministic clock does not sleep, it jumps to the deadline.
        """
        cdef Vm *vm = self.vm
        cdef Kicker *k = &self.kicker
        cdef timespec ts
        cdef uint64_t host = NEVER
        if deadline_ns is not None:
            if vm.deterministic:
                if deadline_ns > virtual_ns(vm):
                    vm.clock_base += deadline_ns - virtual_ns(vm)
                return
            host = deadline_ns + vm.clock_base
        with nogil:
            pthread_mutex_lock(&k.lock)
            while not vm.kick and host_ns() < host:
                if host == NEVER:
                    pthread_cond_wait(&k.woken, &k.lock)
                else:
                    until(&ts, host)
                    pthread_cond_timedwait(&k.woken, &k.lock, &ts)
            vm.kick = 0
            pthread_mutex_unlock(&k.lock)

    def kick(self):
        """From any thread: make `run` return KICKED, or `wait` return, soon."""
        kicker_kick(&self.kicker)

    def leave(self):
        """From a callback: make `run` return KICKED after the current instruction."""
        self.vm.python_wants = 1

    def now_ns(self):
        """Virtual nanoseconds since power-on."""
        return virtual_ns(self.vm)

    @property
    def tsc_hz(self):
        """Ticks of the guest's TSC in a second: it counts virtual nanoseconds."""
        return 1_000_000_000

    def set_intr(self, bint level):
        """The interrupt controller's INTR line. Call it on the vCPU's thread only."""
        self.vm.intr = level
        self.vm.page[PG_PENDING] = FL_IF if level else 0
        if self.vm.hvm != NULL:
            hvm_request_window(self.vm)

    @property
    def cr8(self):
        """Task priority class, 0-15."""
        return self.vm.cr8

    @cr8.setter
    def cr8(self, int value):
        self.vm.cr8 = value & 15

    def watch_cr8(self, int priority):
        """Call the policy's ``cr8_crossed`` when a write to CR8 passes ``priority``; 0: never."""
        self.vm.cr8_watch = priority

    # Stubs ------------------------------------------------------------------------------------

    def stub_address(self, int length):
        """Where the next stub of at most ``length`` bytes may go; None when the window is full.

        A stub does not cross a page.
        """
        cdef Vm *vm = self.vm
        cdef uint32_t at = (vm.stub_next + 15) & ~<uint32_t>15
        if (at & 0xfff) + length > 4096:
            at = (at + 0xfff) & ~<uint32_t>0xfff
        if at + length > WINDOW_SIZE or not vm.window_on:
            return None
        return WINDOW + at

    def install_stub(self, uint64_t gva, uint64_t address, stub):
        """Put a translator Stub in place for the site at ``gva``. False if the site cannot take it.
        """
        cdef Vm *vm = self.vm
        cdef Site *site = site_of(vm, gva)
        cdef CodePage *page
        cdef Stub *s
        cdef bytes code = stub.code
        cdef uint32_t start = <uint32_t>(address - WINDOW)
        cdef uint32_t at, i
        cdef uint8_t *copy
        cdef int32_t distance
        if site == NULL or site.gva != gva or site.stub or site.bits != 64 or \
                not stub_region_free(vm, site, stub.region) or len(stub.points) > MAX_POINTS:
            return False
        s = <Stub *>calloc(1, sizeof(Stub))
        if s == NULL:
            return False
        s.site_gva = gva
        s.start = start
        s.size = len(code)
        s.row = site.row
        s.length = site.length
        s.resume = stub.resume
        s.n_points = len(stub.points)
        for i, point in enumerate(stub.points):
            s.points[i].gva = point.orig
            s.points[i].offset = point.offset
            s.points[i].restore = point.restore
            s.points[i].rsp = point.rsp
            s.points[i].clean = point.clean
        memcpy(vm.window + start, <const char *>code, s.size)
        for i in range(s.size):
            vm.stub_at[start + i] = s
        vm.stub_next = start + s.size
        page = vm.code[site.gpa >> 12]
        at = site.gpa & 0xfff
        copy = vm.copies + (<uint64_t>page.copy << 12) + at
        distance = <int32_t>(address - (gva + 5))
        memset(copy, 0xcc, stub.region)
        copy[0] = 0xe9
        memcpy(copy + 1, &distance, 4)
        site.stub = start
        site.region = stub.region
        drop_blocks(vm, fetch_pa(page) + at, site.region)
        note(vm, EXIT_STUB, gva, address)
        if vm.recorder != NULL:
            record(vm, LOG_STUB, gva, address, site.row, site.bits, vm.window + start, s.size,
                   site.region)
        return True

    # Our own paravirtual interface ------------------------------------------------------------

    def set_ring1(self, stubs, traps, console, shutdown):
        """The guest speaks our own interface (docs/pv-abi.md). Before `run`, engines without
        translation only.

        ``stubs``: the code of a patched kernel's stubs, for the window behind the vCPU page.
        ``traps``: its INT3, as (guest-physical address or None, offset in the window, address,
        resume, row, bits, code). ``console(data)`` and ``shutdown(reason, status)`` do these two
        hypercalls.
        """
        cdef Vm *vm = self.vm
        cdef bytes code = bytes(stubs)
        if vm.translate or len(code) > WINDOW_SIZE - WINDOW_STUBS:
            raise ValueError("not a guest for this interface")
        self.pv_console = console
        self.pv_shutdown = shutdown
        memcpy(vm.window + WINDOW_STUBS, <const char *>code, len(code))
        drop_blocks(vm, PA_WINDOW + WINDOW_STUBS, 64)       # of `warm_up`, which ran there
        pv_install(vm)
        pv_add_traps(vm.pv, [(PA_WINDOW + offset if pa is None else pa, *rest)
                          for pa, offset, *rest in traps])

    def hypercalls(self):
        """How often each hypercall of our own interface was made, by number."""
        if self.vm.pv == NULL:
            return [0] * PV_CALLS
        return [self.vm.pv.calls[i] for i in range(PV_CALLS)]

    # Hooks ------------------------------------------------------------------------------------

    def set_hook(self, int number, bint before, bint after):
        """Have ``exit_hook`` called at exit ``number``: a row of the sensitive table, HOOK_PSEUDO +
        a pseudo-exit, HYPERCALL, PORT_READ or PORT_WRITE. Both False: no more.

        ``exit_hook(number, phase, rip, cpl, bits, hardware_code, code, arguments, limits)`` gives
        (action, value, error). ``phase``: BEFORE or AFTER the exit is dealt with; an exit that is
        only news comes once. ``code``: the instruction, where one is known. ``limits``: LIMIT_*.
        What it raises ends `run`. bt/machine/exit_hooks.py is what users see of this. Raises InputError
        for an instruction that this engine never sees.
        """
        cdef Vm *vm = self.vm
        cdef Site *site
        cdef int i
        if not 0 <= number < HOOKS:
            raise ValueError(f"no exit {number}")
        if number < ROWS and (before or after):
            _check_row(_TABLE[number], hvm=vm.hvm != NULL)
        vm.n_hooked -= vm.hooked[number] != 0
        vm.hooked[number] = (HOOK_BEFORE if before else 0) | (HOOK_AFTER if after else 0)
        vm.n_hooked += vm.hooked[number] != 0
        if vm.hvm != NULL:
            self.intercept_hooked()
        update_features(vm)
        if number >= ROWS:
            return
        # An inline stub does not come here: stubs of this row go, and return when nobody hooks it.
        for i in range(SITE_BUCKETS):
            site = vm.buckets[i]
            while site != NULL:
                if site.row == number:
                    if vm.hooked[number] and site.stub:
                        unstub(vm, vm.code[site.gpa >> 12], site)
                        site.fixed = 2
                    elif not vm.hooked[number] and site.fixed == 2:
                        site.fixed = 0
                        site.hits = 0
                site = site.hash_next

    # State ------------------------------------------------------------------------------------

    def registers(self):
        """The guest's registers as it sees them, by name."""
        cdef Vm *vm = self.vm
        cdef Env *env = vm.env
        result = {name: env.regs[i] for i, name in enumerate(_GPRS)}
        result["rip"] = env.eip
        result["rflags"] = get_flags(vm)
        result["cs"] = virtual_cs(vm)
        result["ss"] = virtual_ss(vm)
        for name, seg in (("ds", R_DS), ("es", R_ES), ("fs", R_FS), ("gs", R_GS)):
            result[name] = env.segs[seg].selector
        result["fs_base"] = env.segs[R_FS].base
        result["gs_base"] = env.segs[R_GS].base
        result["kernel_gs_base"] = kernel_gs(vm)[0]
        result.update(cr0=vm.cr0, cr2=vm.cr2, cr3=vm.cr3, cr4=vm.cr4, cr8=vm.cr8, efer=vm.efer,
                      gdtr=vm.gdt.base, idtr=vm.idt.base, tr=vm.tr.selector, ldtr=vm.ldt.selector,
                      cpl=vm.cpl)
        return result

    def read_register(self, str name):
        """One register as the guest sees it, by a name of `registers`. Raises KeyError."""
        cdef int i
        try:
            i = _GPRS.index(name)
        except ValueError:
            if name == "rip":
                return self.vm.env.eip
            return self.registers()[name]
        return self.vm.env.regs[i]

    def write_register(self, str name, uint64_t value):
        """Change a register by name: general ones, rip, rflags (not its IOPL), fs_base, gs_base,
        kernel_gs_base, cr2, cr3. Raises KeyError for another name, ValueError if it cannot take
        ``value`` or cannot be changed now.
        """
        cdef Vm *vm = self.vm
        cdef Env *env = vm.env
        cdef int bits = code_bits(vm)
        if vm.locked:
            raise ValueError("registers cannot change in the middle of an instruction")
        if name in _GPRS:
            if bits != 64:
                value &= <uint64_t>0xffffffff
            env.regs[_GPRS.index(name)] = value
        elif name == "rip":
            if bits != 64:
                value &= <uint64_t>0xffffffff
            elif not canonical(value):
                raise ValueError(f"rip: {value:#x} is not canonical")
            env.eip = value
            vm.halted = 0
        elif name == "rflags":
            set_flags(vm, (value & 0x244fd5) | (get_flags(vm) & FL_IOPL) | 2)
        elif name in ("fs_base", "gs_base", "kernel_gs_base"):
            if not canonical(value):
                raise ValueError(f"{name}: {value:#x} is not canonical")
            if name == "kernel_gs_base":
                kernel_gs(vm)[0] = value
            else:
                env.segs[R_FS if name == "fs_base" else R_GS].base = value
        elif name == "cr2":
            set_cr2(vm, value)
        elif name == "cr3" and vm.xen == NULL:
            write_cr3(vm, value)
        else:
            raise KeyError(name)

    @property
    def real_cpl(self):
        """The privilege level the CPU underneath runs at: 1 or 3, never 0."""
        return self.vm.env.hflags & HF_CPL

    @property
    def bits(self):
        """Code size of the current segment: 16, 32 or 64."""
        return code_bits(self.vm)

    @property
    def interrupts_enabled(self):
        """Whether the guest's IF is 1."""
        return bool(interrupts_on(self.vm))

    @property
    def linear_rip(self):
        return linear(self.vm, self.vm.env.eip)

    @property
    def message(self):
        """What went wrong, after UNSUPPORTED, CPU_ERROR, or SHUTDOWN of a Xen domain."""
        if self.vm.uc_error:
            return uc_strerror(self.vm.uc_error).decode()
        return self.vm.message.decode() if self.vm.message != NULL else ""

    @property
    def fault_address(self):
        """Guest-physical address of the fetch that ended in VOID; linear one of a fault loop."""
        return self.vm.fault_gva

    def read_virtual(self, uint64_t gva, int length):
        """Guest memory by linear address with kernel rights; None if it is not all mapped."""
        out = bytearray(length)
        cdef uint8_t *buffer = out
        if length <= 0 or length > 1 << 20:
            return None
        # Looking sets accessed bits, as a read of the guest would.
        if read_virt(self.vm, gva, buffer, length, False) != 0:
            return None
        return bytes(out)

    def write_virtual(self, uint64_t gva, bytes data):
        """Write guest memory by linear address with kernel rights; False if it is not writable."""
        if len(data) > 1 << 20:
            return False
        cdef int at = 0
        cdef int part
        cdef const char *source = data
        cdef int length = len(data)
        while at < length:
            part = min(length - at, 4096)
            if write_virt(self.vm, gva + at, source + at, part, False) != 0:
                return False
            at += part
        return True

    def translate_address(self, uint64_t gva):
        """Guest-physical address behind a linear one, with kernel rights; None if there is none."""
        cdef Walk found
        if (self.vm.efer & EFER_LMA and not canonical(gva)) or \
                walk(self.vm, gva, ACCESS_READ, False, &found) != 0:
            return None
        return found.gpa

    def dma_write_begin(self, uint64_t gpa, uint64_t length):
        """A device is about to write to RAM: what was translated from these pages is forgotten.

        Good until the guest runs again. On the vCPU's thread only; the range must be inside RAM.
        """
        cdef Vm *vm = self.vm
        cdef uint64_t gpn
        if length == 0 or gpa >= vm.ram_size or length > vm.ram_size - gpa:
            raise ValueError("not a range of RAM")
        for gpn in range(gpa >> 12, ((gpa + length - 1) >> 12) + 1):
            if vm.code[gpn] != NULL:
                page_to_data(vm, vm.code[gpn])
            if vm.npt != NULL:
                vm.npt[gpn] |= NPT_PRESENT | NPT_DIRTY

    # The second level of translation (engine hvm; bt/machine/second.py) --------------------------

    def protect_memory(self, uint64_t gpa, uint64_t length, bint readonly):
        """Make whole pages of RAM read-only to the guest, or not. ValueError: not a range of RAM."""
        cdef Vm *vm = self.vm
        cdef uint64_t gpn
        if vm.npt == NULL or length == 0 or gpa >= vm.ram_size or length > vm.ram_size - gpa:
            raise ValueError("not a range of RAM, or no second level")
        for gpn in range(gpa >> 12, ((gpa + length - 1) >> 12) + 1):
            if readonly:
                vm.npt[gpn] |= NPT_READONLY
            else:
                vm.npt[gpn] &= ~<uint8_t>NPT_READONLY
        flush_tlb(vm)

    def track_writes(self, bint on):
        """Whether the first store to each page is noted, and is an exit."""
        self.vm.track_writes = on
        flush_tlb(self.vm)

    def written_pages(self, bint clear):
        """A bitmap, page n in bit n % 8 of byte n // 8: written since the last time it was cleared.

        Complete only while `track_writes` is on.
        """
        cdef Vm *vm = self.vm
        cdef uint64_t gpn, pages = vm.ram_size >> 12 if vm.npt != NULL else 0
        found = bytearray((pages + 7) >> 3)
        cdef uint8_t *bitmap = found
        for gpn in range(pages):
            if vm.npt[gpn] & NPT_DIRTY:
                bitmap[gpn >> 3] |= 1 << (gpn & 7)
                if clear:
                    vm.npt[gpn] &= ~<uint8_t>NPT_DIRTY
        if clear:
            flush_tlb(vm)
        return bytes(found)

    def present_pages(self):
        """How many pages of RAM the guest, its loader or a device has touched."""
        cdef uint64_t gpn, count = 0
        for gpn in range(self.vm.ram_size >> 12 if self.vm.npt != NULL else 0):
            count += self.vm.npt[gpn] & NPT_PRESENT
        return count

    def recent_blocks(self):
        """Linear addresses of the newest blocks seen for the first time, oldest first."""
        cdef Vm *vm = self.vm
        cdef uint32_t n = min(vm.recent_at, RECENT)
        return [vm.recent[(vm.recent_at - n + i) % RECENT] for i in range(n)]

    def counters(self):
        """(exits by table row id, exits by pseudo-exit index)."""
        return ([self.vm.row_exits[i] for i in range(len(_TABLE))],
                [self.vm.exits[i] for i in range(EXIT_PSEUDO_COUNT)])

    def scanner_counters(self):
        """(instructions scanned, ns in scanner, rewriter and stub maker, sites made)."""
        return self.vm.insns_scanned, self.vm.scan_ns, self.vm.sites_made

    def exit_counts(self):
        """Exits by reason: (the control unit's, the memory unit's)."""
        rows, counts = self.counters()
        return _names.exit_counts(rows, counts, PSEUDO_EXITS, deterministic=self.vm.deterministic)

    def hardware_counts(self):
        """Engine hvm: #VMEXITs by the manual's name, as (code, how many). Empty elsewhere.

        VMEXIT_NPF, the memory unit's, is what `exit_counts` has in detail.
        """
        cdef Vm *vm = self.vm
        cdef int code
        if vm.hvm == NULL:
            return {}
        found = {_svm.name(code): (code, vm.hvm.exits[code])
                 for code in range(VMEXIT_COUNT) if vm.hvm.exits[code]}
        cdef uint64_t faults = 0
        for code in _NESTED_FAULTS:
            faults += vm.exits[code]
        if faults:
            found[_svm.name(VMEXIT_NPF)] = (VMEXIT_NPF, faults)
        return found

    def hypercall_counts(self):
        """Hypercalls by name, Xen's or our own; "unknown" counts numbers that are none."""
        calls, table_writes, upcalls = self.xen_counters()
        if any(calls):
            return _names.xen_hypercalls(calls, table_writes, upcalls)
        return _names.our_hypercalls(self.hypercalls()) if self.vm.pv != NULL else {}

    def translator_counts(self):
        """What translation took (bt.machine.cpu.TranslatorCounts)."""
        events = _names.translation_counts(self.counters()[1], PSEUDO_EXITS)
        events |= {"loop folded": self.vm.folds, "turn folded": self.vm.folded_turns}
        return _TranslatorCounts(self.vm.scan_ns / 1e9, self.vm.insns_scanned, self.vm.sites_made,
                                 events)

    def set_folding(self, bint on):
        """Whether loops that only count are done in one step (fold.pxi). They are at first."""
        self.vm.folding = on

    def fold_counters(self):
        """(times a loop was folded, turns that were not executed one by one)."""
        return self.vm.folds, self.vm.folded_turns

    def audit_counters(self):
        """(blocks looked at, times the guest was found at real CPL 0)."""
        return self.vm.audit_blocks, self.vm.audit_cpl0

    def sites(self):
        """Every rewritten instruction now in place: (gva, gpa, row, length, hits, stub address)."""
        cdef Vm *vm = self.vm
        cdef Site *site
        cdef int i
        found = []
        for i in range(SITE_BUCKETS):
            site = vm.buckets[i]
            while site != NULL:
                found.append((site.gva, site.gpa, site.row, site.length, site.hits,
                              WINDOW + site.stub if site.stub else 0))
                site = site.hash_next
        return found

    def record(self):
        """From now on keep a log of translation work and count exits by place (record.pxi)."""
        cdef Recorder *r
        if self.vm.recorder != NULL:
            return
        r = <Recorder *>calloc(1, sizeof(Recorder))
        if r != NULL:
            r.places = <Place *>calloc(PLACES, sizeof(Place))
        if r == NULL or r.places == NULL:
            recorder_free(r)
            raise MemoryError
        self.vm.recorder = r
        update_features(self.vm)

    def recorded(self):
        """Take what the log has: (entries, their heap, entries lost so far). Empties it."""
        cdef Recorder *r = self.vm.recorder
        entries = (<char *>r.log)[:r.entries * sizeof(LogEntry)] if r.entries else b""
        heap = (<char *>r.heap)[:r.heap_used] if r.heap_used else b""
        r.entries = 0
        r.heap_used = 0
        return entries, heap, r.lost

    def exit_places(self):
        """Exits by place: [(linear address, reason, count, ns)].

        ``reason``: a row of the sensitive table, or 256 + the index of a pseudo-exit. Address 0
        has what found no room of its own.
        """
        cdef Recorder *r = self.vm.recorder
        return [(r.places[i].address, r.places[i].reason, r.places[i].count, r.places[i].ns)
                for i in range(PLACES) if r.places[i].count]

    def set_tracing(self, bint on):
        self.vm.tracing = on
        update_features(self.vm)
