# SPDX-License-Identifier: GPL-2.0-or-later
# What one virtual machine is, to the compiled core: one C structure, no Python objects inside, so
# that callbacks run without the interpreter lock.
#
# Words used everywhere below:
#   virtual CPL   the privilege the guest believes in: 0 (kernel) or 3 (user)
#   real CPL      what Unicorn runs at: 1 for the guest's kernel, 3 for its user code; never 0
#                 (engine hvm: the virtual one)
#   GPA / GVA     guest-physical / guest-virtual (here always linear, segment base added) address
#   PA            Unicorn's physical address: PA_RAM + GPA, and the VMM's own pages

cdef enum:
    COPY_PAGES = 1 << 14        # room for 64 MB of rewritten code pages
    KEPT_PAGES = 1024           # written pages of code whose blocks wait for what comes

# Nothing is below the first: see `on_no_fetch`.
cdef uint64_t PA_RAM = <uint64_t>1 << 41        # + GPA
cdef uint64_t PA_COPY = <uint64_t>1 << 42       # rewritten copies of guest code pages
cdef uint64_t PA_WINDOW = <uint64_t>1 << 43     # the stub window: per-vCPU page, then stub code
cdef uint64_t PA_ABSENT = <uint64_t>1 << 44     # + GPA: nothing there; reads ones, ignores writes
cdef uint64_t ABSENT_SIZE = <uint64_t>1 << 43
# Non-canonical addresses used to name a PA to uc_ctl_remove_cache; no guest can own one.
cdef uint64_t GVA_PROBE = <uint64_t>1 << 55

# The stub window in the guest's address space: the documented hole at the very top of Linux's
# (and everybody's) 64-bit map, below 4 GB in 32-bit code. See translator/vcpupage.py. The odd page
# number keeps the per-vCPU page out of the TLB slots of round addresses: at ...e00000 it shared one
# with Linux's per-CPU area, and the two pushed each other out on every system call.
cdef uint64_t WINDOW = 0xffffffffffe57000
cdef enum:
    WINDOW_SIZE = 1 << 18
    WINDOW_STUBS = 1 << 12      # offset of the first stub: page 0 is the per-vCPU page

cdef uint64_t CR0_PE = 1
cdef uint64_t CR0_MP = 2
cdef uint64_t CR0_EM = 4
cdef uint64_t CR0_TS = 8
cdef uint64_t CR0_ET = 0x10
cdef uint64_t CR0_NE = 0x20
cdef uint64_t CR0_WP = 0x10000
cdef uint64_t CR0_NW = 0x20000000
cdef uint64_t CR0_CD = 0x40000000
cdef uint64_t CR0_PG = 0x80000000
cdef uint64_t CR4_TSD = 4
cdef uint64_t CR4_DE = 8
cdef uint64_t CR4_PSE = 0x10
cdef uint64_t CR4_PAE = 0x20
cdef uint64_t CR4_MCE = 0x40
cdef uint64_t CR4_PGE = 0x80
cdef uint64_t CR4_PCE = 0x100
cdef uint64_t CR4_OSFXSR = 0x200
cdef uint64_t CR4_OSXMMEXCPT = 0x400
cdef uint64_t CR4_FSGSBASE = 0x10000
cdef uint64_t EFER_SCE = 1
cdef uint64_t EFER_LME = 0x100
cdef uint64_t EFER_LMA = 0x400
cdef uint64_t EFER_NXE = 0x800

cdef enum:
    FL_CF = 1
    FL_ZF = 0x40
    FL_TF = 0x100
    FL_IF = 0x200
    FL_DF = 0x400
    FL_IOPL = 0x3000
    FL_NT = 0x4000
    FL_RF = 0x10000
    FL_VM = 0x20000
    FL_AC = 0x40000
    FL_ID = 0x200000
    FL_ARITH = 0x8d5

cdef enum:                      # exception vectors (SDM vol. 3, 6.3.1)
    EX_DE = 0
    EX_DB = 1
    EX_BP = 3
    EX_OF = 4
    EX_UD = 6
    EX_NM = 7
    EX_DF = 8
    EX_TS = 10
    EX_NP = 11
    EX_SS = 12
    EX_GP = 13
    EX_PF = 14
    EX_AC = 17

# Why `run` came back to Python.
cdef enum:
    STOP_NONE = 0
    STOP_KICK = 1               # a deadline passed, input arrived or someone asked
    STOP_HLT = 2                # HLT with nothing pending
    STOP_SHUTDOWN = 3           # triple fault
    STOP_VOID = 4               # instruction fetch where no memory is
    STOP_STUCK = 5              # no progress: an endless fault loop
    STOP_UNSUPPORTED = 6        # something the vCPU does not do (vm.message says what)
    STOP_CPU = 7                # Unicorn itself gave up (vm.uc_error)
    STOP_PYTHON = 8             # a Python callback raised
    STOP_DEBUG = 9              # at a breakpoint, or a step is done

# Pseudo-exits counted beside the rows of the sensitive table.
cdef enum:
    EXIT_EXCEPTION = 0          # + vector: exceptions the CPU raised, 0..31
    EXIT_SOFTINT = 32           # INT n from user code, INT3, INTO
    EXIT_SYSCALL = 33
    EXIT_SYSENTER = 34
    EXIT_IRQ = 35               # interrupts injected
    EXIT_KICK = 36
    EXIT_PAGE_FAULT = 37        # injected into the guest
    EXIT_TLB_FILL = 38
    EXIT_TLB_FLUSH = 39
    EXIT_SMC = 40               # a code page was written
    EXIT_CODE_PAGE = 41         # a page became code
    EXIT_ABSENT = 42            # access where no memory is
    EXIT_BLOCK = 43             # block seen for the first time
    EXIT_BLOCK_AGAIN = 44       # blocks retranslated because something was rewritten
    EXIT_STALE_TRAP = 45
    EXIT_IO_PYTHON = 46         # port accesses that reached a device
    EXIT_STUB = 47              # stubs installed
    EXIT_UNSTUB = 48            # stubs taken back
    EXIT_PAGE_INVALIDATE = 49
    EXIT_MMIO = 50              # memory accesses that reached a device
    EXIT_NOT_THERE = 51         # first touch of a page (npt.pxi)
    EXIT_READONLY = 52          # store to read-only memory
    EXIT_FIRST_WRITE = 53       # to a page, while writes are tracked
    EXIT_PSEUDO_COUNT = 54

cdef struct PvTrap:             # an INT3 that `bt patch` put in place of an instruction
    uint64_t pa                 # Unicorn-physical address of the INT3
    uint64_t address            # of the instruction, for one in the window
    uint64_t resume             # where the kernel goes on, for one in the window
    uint8_t row
    uint8_t bits
    uint8_t length              # 0 = an empty slot of the hash table
    uint8_t code[16]

cdef struct Pv:                 # what a kernel with our own paravirtual interface needs (pv.pxi)
    PvTrap *traps               # hash table
    uint32_t trap_mask
    uint32_t iret               # numbers of the hypercalls that do not return
    uint32_t sysret
    uint32_t stays              # times in a row that the vCPU was found inside a stub
    uint64_t calls[32]          # made, by number; the last one counts all that do not exist

cdef struct Descriptor:         # a loaded system segment or descriptor-table register
    uint32_t selector
    uint32_t limit
    uint64_t base
    uint32_t flags

cdef struct Site:               # one rewritten instruction
    uint64_t gpa
    uint64_t gva                # where it was first seen; a stub is good for this address only
    Site *hash_next
    Site *page_next
    uint32_t hits
    uint32_t stub               # window offset of the stub, 0 = a trap
    uint16_t row                # of the sensitive table
    uint8_t length
    uint8_t bits
    uint8_t region              # bytes the stub's jump stands for
    uint8_t fixed               # 1: must stay a trap; 2: as long as a hook is on its row
    uint8_t detours             # times control came to the middle of the stub's region

cdef struct CodePage:           # a guest page in the code state
    uint32_t gpn
    int32_t copy                # index of its rewritten copy, -1 = executes from the guest's page
    uint64_t fetched_at         # addresses it was granted for execution at (mmu.pxi, `granted`)
    Site *sites
    uint8_t starts[512]         # bit per byte: a translation block started here
    CodePage *next_free

cdef struct Cached:             # one entry of the VMM's own small TLBs
    uint64_t page               # GVA of the page | 1
    uint64_t gen
    uint8_t *host
    uint64_t gpn

cdef struct CpuidCached:        # an answer of the CPUID policy, which depends on nothing else
    uint32_t leaf
    uint32_t subleaf
    uint32_t regs[4]            # EAX EBX ECX EDX
    uint32_t valid

cdef struct SiteCached:
    uint64_t gva
    uint64_t gen
    Site *site

cdef enum:
    MAX_BREAKS = 256
    MAX_PATCHES = 1024          # one breakpoint can be in place on several pages

cdef struct Patch:              # a byte that a breakpoint made an int3 in the page's copy
    uint64_t gpa
    uint64_t gva

cdef enum:
    SITE_BUCKETS = 1 << 15
    SITE_CACHE = 1 << 11
    VMM_TLB = 64
    CPUIDS = 64
    ROWS = 256
    HOOKS = 256 + 64            # exits a hook can be on: rows, pseudo-exits behind them, three more
    HOOK_HYPERCALL = 256 + 61
    HOOK_PORT_READ = 256 + 62
    HOOK_PORT_WRITE = 256 + 63
    MAX_POINTS = 24
    MAX_LOCALS = 32             # more than so many: a CR3 load forgets everything
    GEN_STEP = 2
    RECENT = 32                 # blocks remembered for the death report
    ASSISTED = 256              # faulting instructions remembered
    FOLD_SLOTS = 256            # heads of loops remembered

cdef struct Point:              # where inside a stub the vCPU can be found (stubs.Point)
    uint64_t gva                # guest address to continue at
    uint16_t offset             # from the start of the stub
    uint8_t restore             # bit 0: RCX from SAVE0, bit 1: RDX from SAVE1
    int8_t rsp                  # bytes to add to RSP
    uint8_t clean               # also a place to enter the stub at

cdef struct Stub:
    uint64_t site_gva
    uint32_t start              # window offset
    uint32_t size
    uint16_t row
    uint8_t length              # of the guest's instruction
    uint16_t resume             # offset to continue at after the VMM did the instruction
    int n_points
    Point points[MAX_POINTS]

cdef struct Assisted:           # an instruction that faulted and was found to be one of the table's
    const uint8_t *rows         # the rows it was looked for in; NULL = an empty slot
    uint8_t bits
    uint8_t row
    uint8_t length
    uint8_t code[16]

cdef struct Fold:               # a loop whose head is watched (fold.pxi)
    Vm *vm
    uint64_t head               # linear; 0 = an empty slot
    uc_hook hook
    uint32_t wait               # visits until the next look
    uint32_t looks              # in vain, since the last that was not
    int retired                 # the hook is gone

cdef struct Vm
cdef struct Xen                  # xen.pxi; a Vm has one when it is a Xen domain
cdef struct Recorder             # record.pxi; a Vm has one while it is recorded
cdef struct Hvm                  # hvm.pxi; a Vm has one when its kernel runs at CPL 0

ctypedef void (*Handler)(Vm *vm, Insn *insn) noexcept nogil

cdef struct Insn:               # one decoded sensitive instruction
    const uint8_t *code
    int length
    int bits                    # 16, 32, 64: code size of the segment it is in
    int opsize                  # 2, 4, 8 bytes
    int adsize
    int seg                     # override, -1 = none
    int rep                     # 0, 0xf2 or 0xf3
    int rex
    int two_byte                # 1: 0F map
    uint8_t opcode
    uint8_t modrm
    int mod
    int reg
    int rm
    int imm                     # offset of the bytes after modrm/displacement
    uint64_t ea                 # effective address, without the segment base
    int ea_seg

cdef struct Vm:
    uc_engine *uc
    Env *env
    char *cpu
    void *owner                 # the Vcpu object, for callbacks into Python
    uint8_t *ram
    uint64_t ram_size           # first address above all RAM
    uint64_t hole               # start and length of the part below that is not RAM
    uint64_t hole_size
    const uint64_t *mmio        # claimed ranges: bt/machine/bus.py says how
    uint8_t *copies
    uint8_t *window
    uint64_t *page              # the per-vCPU page (first page of the window)
    # virtual CPU
    int cpl
    uint64_t cr0
    uint64_t cr2
    uint64_t cr3
    uint64_t cr4
    uint64_t cr8
    uint64_t cr8_watch          # class of the interrupt that only CR8 may hold back, 0 = none
    uint64_t efer
    uint64_t star
    uint64_t lstar
    uint64_t cstar
    uint64_t fmask
    uint64_t sysenter_cs
    uint64_t sysenter_esp
    uint64_t sysenter_eip
    uint64_t tsc_adjust
    uint64_t tsc_aux
    uint64_t pat
    uint64_t dr[8]
    Xen *xen                    # NULL: a PC
    Pv *pv                      # NULL: no kernel with our own paravirtual interface
    Recorder *recorder          # NULL: nothing is recorded
    Hvm *hvm                    # NULL: the guest's kernel runs one ring down
    uint8_t *npt                # NULL, or by GPN: NPT_* (npt.pxi)
    int track_writes
    Descriptor gdt
    Descriptor idt
    Descriptor ldt
    Descriptor tr
    # where the current exit happened
    uint64_t rip                # offset in CS of the instruction being emulated
    uint64_t next_rip
    uint32_t fault_error        # of the fault being raised
    uint64_t fault_gva
    int fault_vector
    uint64_t fault_gpa          # where `touch` found no RAM
    int fill_refused
    uint64_t shadow             # linear RIP that interrupts must not be taken at (STI, MOV SS), 0
    int stepping                # running the one instruction at vm.shadow, by our own TF
    # events
    int intr                    # INTR line of the interrupt controller
    volatile int kick           # somebody wants the vCPU to come out
    int stop                    # STOP_*: leave `run`
    int stop_now                # leave the current emu_start, then go on
    int python_wants            # a callback asked to leave run
    int halted
    const char *message
    int uc_error
    # policy
    int translate               # engine bt; 0 = engine trap
    int probing
    int warming                 # the first block ever, of our own: Unicorn reports edges only
    void *kicker
    size_t invalid_addr         # offset of uc_struct.invalid_addr
    StopWords stops             # what a stop is made of (layout.pxi)
    volatile uint8_t *skip_sync # uc_struct.skip_sync_pc_on_exit
    int unwatched               # nobody sees single exits: no hooks, no tracing, no recording
    int skips_sync              # whether skip_sync may be used (hooks.pxi, `rip_is_known`)
    uint64_t probe_pa
    uint8_t kernel_rows[ROWS]
    uint8_t user_rows[ROWS]
    uint8_t assist_rows[ROWS]
    Handler handlers[ROWS]
    Assisted assisted[ASSISTED]
    uint8_t *port_read_kind
    uint8_t *port_write_kind
    uint8_t *port_value
    uint64_t *fifo              # bt/machine/fifo.py: port, bytes done, bytes in all, 1 for OUT
    uint8_t *fifo_data
    uint32_t hot
    int deterministic
    uint64_t blocks             # executed, deterministic clock only
    uint64_t block_deadline
    void *tcg                   # TCGContext (temporaries.pxi)
    void *tcg_env               # its globals for the pointer to CPUX86State and for cc_op (tcg.pxi)
    void *tcg_cc_op
    void *syscall_call          # what SYSCALL calls (syscall.pxi); NULL: nothing of ours
    void *iretq_call            # likewise (iret.pxi)
    void *rdtsc_call            # likewise (rdtsc.pxi)
    void *past_stop_call        # TCGLabel of the block under translation, until it is placed
    int stops_in_line           # blocks look for stops themselves
    int barred                  # an instruction that Unicorn cannot translate was met
    uint64_t clock_base         # ns, added to executed work or to the host clock
    uint64_t ns_per_block
    # pages
    CodePage **code             # by GPN; NULL = data
    uint32_t *write_gen         # flush generation in which a page was last granted for writing
    uint64_t *written_at        # and the addresses it was granted at, since (mmu.pxi, `granted`)
    CodePage *free_pages
    CodePage *kept[KEPT_PAGES]  # written pages, by the low bits of their GPN (pages.pxi)
    uint8_t *kept_bytes         # what was on each
    uint8_t *copy_used
    uint32_t next_copy
    uint64_t gen                # of everything cached by GVA; bit 0: under a Xen domain's user root
    uint32_t flush_gen
    uint64_t locals[MAX_LOCALS] # pages in the TLB that are not global, while they are few
    uint32_t n_locals
    Cached reads[VMM_TLB]
    Cached writes[VMM_TLB]
    Cached fetches[VMM_TLB]
    CpuidCached cpuids[CPUIDS]
    Site *buckets[SITE_BUCKETS]
    SiteCached site_cache[SITE_CACHE]
    uint64_t site_gen
    Stub **stub_at              # by window offset
    uint32_t stub_next
    int window_on
    int window_lost             # the guest has just been seen to own the window's addresses
    # statistics
    uint64_t row_exits[ROWS]
    uint64_t exits[EXIT_PSEUDO_COUNT]
    uint64_t insns_scanned
    uint64_t scan_ns
    uint64_t sites_made
    uint64_t recent[RECENT]
    uint32_t recent_at
    # loops
    int folding
    Fold loops[FOLD_SLOTS]
    int fold_hooks
    uint64_t folds
    uint64_t folded_turns
    # progress watch: the same fault at the same place again and again is a dead guest
    uint64_t last_fault_rip
    uint64_t last_fault_gva
    uint32_t same_faults
    # hooks from Python (exits.pxi)
    uint8_t hooked[HOOKS]       # HOOK_BEFORE and HOOK_AFTER, by row or ROWS + pseudo-exit
    int n_hooked                # how many are not 0
    int running                 # inside `run`: hooks may be called
    int in_hook                 # one is being called: they do not nest
    int locked                  # ... and it may not change registers
    uint32_t raised             # exceptions raised, to see whether a handler completed
    int64_t hardware_code       # #VMEXIT code of the exit, -1 = none (the engine's own hardware)
    # debugging from outside (debug.pxi)
    uint64_t breaks[MAX_BREAKS] # linear addresses
    int n_breaks
    Patch patches[MAX_PATCHES]
    int n_patches
    int debug_step              # STEP_*
    int step_pushf
    int step_popf
    int late_step               # a #DB of our step may still come
    int flags_late              # the arithmetic flags are yet to be set, to late_flags
    uint64_t late_flags
    int step_irqs               # a step may be the taking of an interrupt
    int step_taking
    int step_open
    uint64_t step_gva
    int flush_wanted            # all translations, before the guest runs again
    uint64_t hit                # the breakpoint that stopped the vCPU, 0 = none
    # audit
    int audit
    uint64_t audit_blocks
    uint64_t audit_cpl0
    int tracing

cdef int row_rdtsc, row_rdtscp  # filled in by vcpu.pyx at import, as are the next

# Offsets (in 8-byte words) of the fields of the per-vCPU page: translator/vcpupage.py is the one
# place that defines them; vcpu.pyx fills these in at import.
cdef int PG_VIF, PG_VIOPL, PG_PENDING, PG_SAVE0, PG_SAVE1, PG_KGS, PG_CS, PG_SS
cdef int PG_CR0, PG_CR2, PG_CR3, PG_CR4

cdef inline bint is_ram(Vm *vm, uint64_t gpa) noexcept nogil:
    return gpa < vm.ram_size and gpa - vm.hole >= vm.hole_size

cdef inline uint64_t linear(Vm *vm, uint64_t rip) noexcept nogil:
    """Linear address of an offset in CS."""
    if vm.env.hflags & HF_CS64:
        return rip
    return (vm.env.segs[R_CS].base + rip) & <uint64_t>0xffffffff

cdef inline uint64_t window_offset(Vm *vm, uint64_t gva) noexcept nogil:
    """Offset of a linear address in the window; WINDOW_SIZE or more if it is outside.

    32-bit code of a kernel with our own interface reaches the window at the low half of its
    address.
    """
    if vm.pv != NULL and gva >> 32 == 0:
        gva |= <uint64_t>0xffffffff00000000
    return gva - WINDOW

cdef inline bint in_window(Vm *vm, uint64_t gva) noexcept nogil:
    """Whether a linear address is the VMM's: stubs and the per-vCPU page."""
    return vm.window_on and window_offset(vm, gva) < WINDOW_SIZE

cdef inline int code_bits(Vm *vm) noexcept nogil:
    if vm.env.hflags & HF_CS64:
        return 64
    return 32 if vm.env.hflags & HF_CS32 else 16

