# SPDX-License-Identifier: GPL-2.0-or-later
# Loop folding: a loop that only counts is done in one step.
#
# Kernels walk ranges in which there is nothing to do. Debian's kernel as a Xen domain looks at 128 M
# entries of its p2m area, nearly all of which lie behind the end of the table, so that each turn is
# two comparisons and two increments. On an emulated CPU that is a second.
#
# `fold_watch` sees each block when it is translated, before it runs, and looks for a short jump
# back. If one can get round the loop by nothing but moves, increments and comparisons of registers
# and jumps, the loop's head is given a hook of its own (a block hook on exactly that address: other
# blocks pay nothing). Now and then the hook follows one turn of the loop (`fold_follow`), from the
# real registers and the bytes as they are at that moment. If it is led back to the head by
# instructions that touch nothing but registers, every register's value at the end of a turn is a
# constant, or some register's value at its begin plus a constant; so each comparison is between two
# values that move by a fixed step, and `fold_turns` works out for how many turns all of them come
# out the same. These turns are done at once. The turn that comes out differently runs on the CPU.
#
# What makes it exact:
#   - Only registers are read and written, so no turn can fault, and none depends on memory.
#   - Turns are counted only while no compared value leaves its half of the numbers of its width.
#     There it is the same as a plain integer, signed or unsigned, and nothing wraps.
#   - Flags are not computed: the head's own block must overwrite all of them before it reads any.
#     No interrupt can come in between; those are taken between blocks.
#   - With the deterministic clock the turns' blocks count as executed, and no deadline is passed.
# A loop with a single condition is not folded. It does nothing but count: a delay, whose time is its
# purpose (a kernel may even measure with it how fast the CPU is).

cdef enum:
    FOLD_SPAN = 128             # bytes of code from the head that a loop may have
    FOLD_INSNS = 32             # instructions of one turn
    FOLD_TESTS = 8              # conditions of one turn
    FOLD_FIRST = 32             # visits of the head before the first look
    FOLD_WORTH = 256            # turns that must come out of a look
    FOLD_LOOKS = 8              # looks in vain, each after twice as many visits, before the hook goes
    FOLD_HOOKS = 64             # at a time: each is compared with every new block's address

cdef uint64_t FOLD_ENDLESS = <uint64_t>1 << 63

cdef enum:                      # what one instruction does
    FOLD_NOP = 1
    FOLD_MOVE = 2               # dst = src + imm
    FOLD_CONST = 3              # dst = imm
    FOLD_ADD = 4                # dst += imm; all flags
    FOLD_INC = 5                # dst += imm; all flags but CF
    FOLD_ZERO = 6               # XOR, SUB of a register with itself; all flags
    FOLD_CMP = 7                # all flags of dst - src, or of dst - imm
    FOLD_TEST = 8               # TEST of a register with itself: all flags
    FOLD_JCC = 9
    FOLD_JMP = 10

cdef struct FoldInsn:
    int kind
    int wide                    # 32 or 64
    int dst
    int src                     # -1: imm
    int condition               # as in the opcode
    int64_t imm                 # of a jump: from the end of the instruction
    int length

cdef struct Term:               # a register's value, told by the values when the turn began
    int base                    # that register's, -1: none
    int wide                    # then cut to so many bits
    uint64_t offset             # plus this

cdef struct FoldTest:           # one condition met on the way round
    Term a
    Term b
    int wide
    bint is_signed

cdef struct Turn:
    Term regs[16]               # at the end of the turn
    FoldTest tests[FOLD_TESTS]
    int n_tests
    int blocks

# One instruction ---------------------------------------------------------------------------------

cdef int fold_modrm_length(const uint8_t *code, int avail) noexcept nogil:
    """Bytes of ModRM, SIB and displacement (32- and 64-bit addressing); 0: they are not all there."""
    cdef int mod = code[0] >> 6
    cdef int rm = code[0] & 7
    cdef int length = 1
    if mod == 3:
        return 1
    if rm == 4:
        if avail < 2:
            return 0
        length = 2
        if mod == 0 and code[1] & 7 == 5:
            length += 4
    if mod == 1:
        length += 1
    elif mod == 2 or (mod == 0 and rm == 5):
        length += 4
    return length if length <= avail else 0

cdef bint fold_decode(const uint8_t *code, int avail, int bits, FoldInsn *out) noexcept nogil:
    """One instruction of those that a folded loop may have; False for any other."""
    cdef int at = 0
    cdef int rex = 0
    cdef int op, reg, rm, mod
    cdef bint prefixed = False
    while at < avail and (code[at] == 0x66 or code[at] == 0x2e):
        prefixed = True         # of a long NOP, nothing else
        at += 1
    if bits == 64 and at < avail and code[at] & 0xf0 == 0x40:
        rex = code[at]
        at += 1
    if at >= avail:
        return False
    out.wide = 64 if rex & 8 else 32
    out.src = -1
    out.imm = 0
    op = code[at]
    at += 1
    if op == 0x90 and not rex & 1:
        out.kind = FOLD_NOP
        out.length = at
        return True
    if op == 0x0f and at + 1 < avail and code[at] == 0x1f:
        out.kind = FOLD_NOP
        rm = fold_modrm_length(code + at + 1, avail - at - 1)
        out.length = at + 1 + rm
        return rm != 0
    if prefixed:
        return False
    if op & 0xf0 == 0x70 or op == 0xeb:
        if at >= avail:
            return False
        out.kind = FOLD_JMP if op == 0xeb else FOLD_JCC
        out.condition = op & 15
        out.imm = <int8_t>code[at]
        out.length = at + 1
        return True
    if op == 0xe9 or (op == 0x0f and at < avail and code[at] & 0xf0 == 0x80):
        out.kind = FOLD_JMP if op == 0xe9 else FOLD_JCC
        if op == 0x0f:
            out.condition = code[at] & 15
            at += 1
        if at + 4 > avail:
            return False
        out.imm = (<const int32_t *>(code + at))[0]
        out.length = at + 4
        return True
    if bits == 32 and op & 0xf0 == 0x40:
        out.kind = FOLD_INC
        out.dst = op & 7
        out.imm = -1 if op & 8 else 1
        out.length = at
        return True
    if op & 0xf8 == 0xb8:
        out.kind = FOLD_CONST
        out.dst = (op & 7) | ((rex & 1) << 3)
        if at + (8 if rex & 8 else 4) > avail:
            return False
        if rex & 8:
            out.imm = (<const int64_t *>(code + at))[0]
            out.length = at + 8
        else:
            out.imm = (<const uint32_t *>(code + at))[0]
            out.length = at + 4
        return True
    if op == 0x05 or op == 0x2d or op == 0x3d:      # ADD, SUB, CMP of the accumulator
        if at + 4 > avail:
            return False
        out.kind = FOLD_CMP if op == 0x3d else FOLD_ADD
        out.dst = RAX
        out.imm = (<const int32_t *>(code + at))[0]
        if op == 0x2d:
            out.imm = -out.imm
        out.length = at + 4
        return True
    # All others have a ModRM byte.
    if at >= avail:
        return False
    mod = code[at] >> 6
    reg = ((code[at] >> 3) & 7) | ((rex & 4) << 1)
    rm = (code[at] & 7) | ((rex & 1) << 3)
    if op == 0x8d:
        # LEA of a register and a displacement
        if (mod != 1 and mod != 2) or code[at] & 7 == 4:
            return False
        out.kind = FOLD_MOVE
        out.dst = reg
        out.src = rm
        at += 1
        if at + (1 if mod == 1 else 4) > avail:
            return False
        out.imm = <int8_t>code[at] if mod == 1 else (<const int32_t *>(code + at))[0]
        out.length = at + (1 if mod == 1 else 4)
        return True
    if mod != 3:
        return False
    at += 1
    out.length = at
    out.dst = rm
    if op == 0x89 or op == 0x8b:
        out.kind = FOLD_MOVE
        out.dst = rm if op == 0x89 else reg
        out.src = reg if op == 0x89 else rm
        return True
    if op == 0x39 or op == 0x3b:
        out.kind = FOLD_CMP
        out.dst = rm if op == 0x39 else reg
        out.src = reg if op == 0x39 else rm
        return True
    if op == 0x85:
        out.kind = FOLD_TEST
        return reg == rm
    if op == 0x31 or op == 0x33 or op == 0x29 or op == 0x2b:
        out.kind = FOLD_ZERO
        return reg == rm
    if op == 0xff and reg & 7 <= 1:
        out.kind = FOLD_INC
        out.imm = 1 if reg & 7 == 0 else -1
        return True
    if op == 0xc7 and reg & 7 == 0:
        if at + 4 > avail:
            return False
        out.kind = FOLD_CONST
        out.imm = (<const int32_t *>(code + at))[0]
        out.length = at + 4
        return True
    if op == 0x81 or op == 0x83:
        if at + (4 if op == 0x81 else 1) > avail:
            return False
        out.imm = (<const int32_t *>(code + at))[0] if op == 0x81 else <int8_t>code[at]
        out.length = at + (4 if op == 0x81 else 1)
        reg &= 7
        if reg == 0 or reg == 5:
            out.kind = FOLD_ADD
            if reg == 5:
                out.imm = -out.imm
            return True
        out.kind = FOLD_CMP
        return reg == 7
    return False

cdef inline bint fold_sets_flags(FoldInsn *insn) noexcept nogil:
    """Whether an instruction overwrites every arithmetic flag."""
    return insn.kind == FOLD_ADD or insn.kind == FOLD_ZERO or insn.kind == FOLD_CMP or \
        insn.kind == FOLD_TEST

# Terms -------------------------------------------------------------------------------------------

cdef inline uint64_t cut(uint64_t value, int wide) noexcept nogil:
    return value if wide == 64 else value & <uint64_t>0xffffffff

cdef inline uint64_t term_value(Term *term, const uint64_t *regs) noexcept nogil:
    return cut((regs[term.base] if term.base >= 0 else 0) + term.offset, term.wide)

cdef inline void term_const(Term *term, uint64_t value, int wide) noexcept nogil:
    term.base = -1
    term.wide = 64
    term.offset = cut(value, wide)

cdef bint term_add(Term *term, int64_t imm, int wide) noexcept nogil:
    """Replace ``term`` by its sum with ``imm`` in ``wide`` bits. False: that is no Term."""
    if term.base < 0:
        term_const(term, term.offset + <uint64_t>imm, wide)
        return True
    if wide == 32:
        term.wide = 32
        term.offset = cut(term.offset + <uint64_t>imm, 32)
        return True
    if term.wide == 32 and imm != 0:
        return False            # a 64-bit sum of something that was cut to 32 bits
    term.offset += <uint64_t>imm
    return True

# One turn ----------------------------------------------------------------------------------------

cdef bint fold_outcome(FoldTest *test, int condition, const uint64_t *regs) noexcept nogil:
    """Whether a condition (its opcode's low four bits) holds in the turn that begins at ``regs``."""
    cdef uint64_t a = cut(term_value(&test.a, regs), test.wide)
    cdef uint64_t b = cut(term_value(&test.b, regs), test.wide)
    cdef int64_t sa = <int64_t>a if test.wide == 64 else <int32_t>a
    cdef int64_t sb = <int64_t>b if test.wide == 64 else <int32_t>b
    cdef bint holds
    cdef int which = condition & ~1
    if which == 2:
        holds = a < b
    elif which == 4:
        holds = a == b
    elif which == 6:
        holds = a <= b
    elif which == 8 or which == 12:
        holds = sa < sb
    else:
        holds = sa <= sb
    return holds != (condition & 1)

cdef bint fold_follow(const uint8_t *code, int avail, int bits, const uint64_t *regs,
                      Turn *turn) noexcept nogil:
    """Follow the loop at ``code`` for one turn from ``regs``. False if it is none to fold."""
    cdef FoldInsn insn
    cdef FoldTest flags
    cdef Term term
    cdef int i, at = 0
    cdef uint32_t allowed = 0       # conditions that the flags now can answer, one bit each
    cdef bint dead = False          # the flags of the turn before are overwritten
    turn.n_tests = turn.blocks = 0
    for i in range(16):
        turn.regs[i].base = i
        turn.regs[i].wide = 64
        turn.regs[i].offset = 0
    for i in range(FOLD_INSNS):
        if at < 0 or at >= avail or not fold_decode(code + at, avail - at, bits, &insn):
            return False
        at += insn.length
        if insn.kind == FOLD_JMP or insn.kind == FOLD_JCC:
            turn.blocks += 1
            if not dead:
                return False
            if insn.kind == FOLD_JCC:
                if not (allowed >> insn.condition) & 1 or turn.n_tests == FOLD_TESTS:
                    return False
                flags.is_signed = insn.condition >= 8
                turn.tests[turn.n_tests] = flags
                turn.n_tests += 1
                if not fold_outcome(&flags, insn.condition, regs):
                    continue
            if insn.imm < -FOLD_SPAN or insn.imm > FOLD_SPAN:
                return False
            at += <int>insn.imm
            if at == 0:
                return True
            continue
        dead = dead or fold_sets_flags(&insn)
        if insn.kind == FOLD_MOVE:
            term = turn.regs[insn.src]
            if not term_add(&term, insn.imm, insn.wide):
                return False
            turn.regs[insn.dst] = term
        elif insn.kind == FOLD_CONST:
            term_const(&turn.regs[insn.dst], <uint64_t>insn.imm, insn.wide)
        elif insn.kind == FOLD_ZERO:
            term_const(&turn.regs[insn.dst], 0, 64)
            allowed = 0
        elif insn.kind == FOLD_ADD or insn.kind == FOLD_INC:
            if not term_add(&turn.regs[insn.dst], insn.imm, insn.wide):
                return False
            flags.a = turn.regs[insn.dst]
            term_const(&flags.b, 0, 64)
            flags.wide = insn.wide
            allowed = 0x0330        # E NE S NS: what the result alone says
        elif insn.kind == FOLD_TEST:
            flags.a = turn.regs[insn.dst]
            term_const(&flags.b, 0, 64)
            flags.wide = insn.wide
            allowed = 0xf330        # and, since OF is 0, L GE LE G
        elif insn.kind == FOLD_CMP:
            flags.a = turn.regs[insn.dst]
            if insn.src >= 0:
                flags.b = turn.regs[insn.src]
            else:
                term_const(&flags.b, <uint64_t>insn.imm, insn.wide)
            flags.wide = insn.wide
            allowed = 0xf0fc        # B AE E NE BE A, L GE LE G
    return False

# Many turns --------------------------------------------------------------------------------------

cdef struct Course:             # a compared value: value + i * step in the i-th turn from now
    uint64_t value
    int64_t step
    int wide                    # as long as it stays in its half of the numbers of so many bits

cdef bint fold_course(Term *term, int wide, Turn *turn, const uint64_t *regs,
                      Course *out) noexcept nogil:
    """How a compared term moves from turn to turn. False: not by a fixed step."""
    cdef Term *end
    out.value = cut(term_value(term, regs), wide)
    out.step = 0
    out.wide = wide
    if term.base < 0:
        return True
    end = &turn.regs[term.base]
    if end.base != term.base:
        return False            # that register is not counted but set
    if end.wide == 32:
        # Cut to 32 bits at the end of each turn; the first must begin so too.
        if regs[term.base] >> 32 or (wide == 64 and term.wide == 64 and term.offset != 0):
            return False
        out.step = <int32_t>end.offset
        out.wide = 32
    else:
        out.step = <int64_t>end.offset
        if term.wide == 32:
            out.wide = 32
    return True

cdef uint64_t fold_room(Course *c) noexcept nogil:
    """Steps that a value can make without leaving its half of the numbers."""
    cdef uint64_t half = <uint64_t>1 << (c.wide - 1)
    if c.step == 0:
        return FOLD_ENDLESS
    if c.step > 0:
        return (half - 1 - (c.value & (half - 1))) // <uint64_t>c.step
    return (c.value & (half - 1)) // (0 - <uint64_t>c.step)

cdef uint64_t fold_same(FoldTest *test, Course *a, Course *b) noexcept nogil:
    """Steps for which a - b keeps its sign (and stays zero, if it is)."""
    cdef uint64_t apart
    cdef int64_t step = a.step - b.step
    cdef bint below
    if a.value == b.value:
        return FOLD_ENDLESS if step == 0 else 0
    if test.is_signed:
        if test.wide == 64:
            below = <int64_t>a.value < <int64_t>b.value
            apart = a.value - b.value
        else:
            below = <int32_t>a.value < <int32_t>b.value
            apart = <uint64_t>(<int64_t><int32_t>a.value - <int64_t><int32_t>b.value)
    else:
        below = a.value < b.value
        apart = a.value - b.value
    if below:
        apart = 0 - apart
        step = -step
    if step >= 0:
        return FOLD_ENDLESS
    return (apart - 1) // (0 - <uint64_t>step)

cdef uint64_t fold_turns(Turn *turn, const uint64_t *regs) noexcept nogil:
    """How many turns from ``regs`` on go the way that ``turn`` went; 0: unknown, or for ever."""
    cdef uint64_t further = FOLD_ENDLESS
    cdef FoldTest *test
    cdef Course a, b
    cdef int i
    for i in range(turn.n_tests):
        test = &turn.tests[i]
        if not fold_course(&test.a, test.wide, turn, regs, &a) or \
                not fold_course(&test.b, test.wide, turn, regs, &b):
            return 0
        # Steps are added and compared below: none is so large that this could overflow.
        if not -FOLD_STEP_MAX <= a.step <= FOLD_STEP_MAX or \
                not -FOLD_STEP_MAX <= b.step <= FOLD_STEP_MAX:
            return 0
        further = min(further, min(fold_room(&a), min(fold_room(&b), fold_same(test, &a, &b))))
    for i in range(16):
        # What a register becomes must be told by registers that are counted (or left alone).
        if turn.regs[i].base >= 0 and turn.regs[turn.regs[i].base].base != turn.regs[i].base:
            return 0
    return 0 if further == FOLD_ENDLESS else further + 1

cdef int64_t FOLD_STEP_MAX = <int64_t>1 << 40

cdef void fold_apply(Turn *turn, uint64_t *regs, uint64_t turns) noexcept nogil:
    """The registers after ``turns`` turns: what the last one makes of those it begins with."""
    cdef uint64_t begin[16]
    cdef Term *end
    cdef int i
    for i in range(16):
        end = &turn.regs[i]
        begin[i] = regs[i]
        if end.base == i and turns > 1:
            begin[i] = cut(regs[i] + end.offset * (turns - 1), end.wide)
    for i in range(16):
        regs[i] = term_value(&turn.regs[i], begin)

# The hook ----------------------------------------------------------------------------------------

cdef bint fold_look(Fold *f) noexcept nogil:
    """At a loop's head: do what turns can be foreseen. False: too few."""
    cdef Vm *vm = f.vm
    cdef uint8_t code[FOLD_SPAN]
    cdef Turn turn
    cdef uint64_t turns
    cdef int avail = fetch_code(vm, f.head, code, FOLD_SPAN)
    if not fold_follow(code, avail, code_bits(vm), vm.env.regs, &turn) or turn.n_tests < 2:
        return False
    turns = fold_turns(&turn, vm.env.regs)
    if turns < FOLD_WORTH:
        return False
    if vm.deterministic and vm.block_deadline != NEVER:
        # The head's block is counted already; the deadline's own block has to run.
        if vm.blocks >= vm.block_deadline:
            return True
        turns = min(turns, (vm.block_deadline - 1 - vm.blocks) // <uint64_t>turn.blocks)
        if turns == 0:
            return True
    fold_apply(&turn, vm.env.regs, turns)
    if vm.deterministic:
        vm.blocks += turns * <uint64_t>turn.blocks
    vm.folds += 1
    vm.folded_turns += turns
    return True

cdef inline int fold_slot(uint64_t gva) noexcept nogil:
    return (gva ^ (gva >> 8)) & (FOLD_SLOTS - 1)

cdef void on_loop_head(uc_engine *uc, uint64_t address, uint32_t size, void *data) noexcept nogil:
    """UC_HOOK_BLOCK at one loop's head."""
    cdef Fold *f = <Fold *>data
    cdef Vm *vm = f.vm
    f.wait -= 1
    if f.wait or f.retired:
        return
    if code_bits(vm) == 16 or vm.env.eflags & FL_TF or not vm.folding or vm.n_breaks or \
            (vm.hvm != NULL and vm.env.cr[3] != vm.cr3):    # a task switch that was not seen yet
        f.wait = FOLD_FIRST
        return
    if fold_look(f):
        f.looks = 0
    else:
        f.looks += 1
        if f.looks == FOLD_LOOKS:
            fold_retire(f)
            return
    f.wait = FOLD_FIRST << f.looks

cdef void fold_drop_head(Vm *vm, uint64_t head) noexcept nogil:
    """Have the block at ``head`` translated anew: with a hook, or without."""
    cdef uint64_t gpn
    if fetch_page(vm, head, &gpn) == 0 and vm.code[gpn] != NULL:
        drop_blocks(vm, fetch_pa(vm.code[gpn]) + (head & 0xfff), 1)

cdef inline bint fold_hooked(Vm *vm, uint64_t gva) noexcept nogil:
    """Whether a block at ``gva`` calls `on_loop_head`."""
    cdef Fold *f = &vm.loops[fold_slot(gva)]
    return f.head == gva and not f.retired

cdef void fold_retire(Fold *f) noexcept nogil:
    """Nothing comes of this loop: it need not be looked at any more."""
    cdef Vm *vm = f.vm
    cdef uint64_t gpn
    f.retired = 1
    vm.fold_hooks -= 1
    # Unicorn drops the hooked blocks by their virtual address: answer for their page.
    if fetch_page(vm, f.head, &gpn) == 0 and vm.code[gpn] != NULL:
        vm.probing = 1
        vm.probe_pa = fetch_pa(vm.code[gpn])
        uc_hook_del(vm.uc, f.hook)
        vm.probing = 0

cdef bint fold_way_round(const uint8_t *code, int avail, int bits, int back) noexcept nogil:
    """Whether foldable instructions lead from the head to the jump back that ends at ``back``."""
    cdef uint8_t reached[FOLD_SPAN + 1]
    cdef FoldInsn insn
    cdef int at, to
    cdef bint dead = False
    memset(reached, 0, sizeof(reached))
    reached[0] = 1
    for at in range(back):
        if not reached[at] or not fold_decode(code + at, avail - at, bits, &insn):
            continue
        to = at + insn.length
        if insn.kind != FOLD_JCC and insn.kind != FOLD_JMP:
            dead = dead or fold_sets_flags(&insn)
        elif not dead:
            return False        # the first jump is that of the head's block
        elif to == back and insn.imm == -back:
            return True
        elif at < to + insn.imm < back:
            reached[to + insn.imm] = 1
        if insn.kind != FOLD_JMP and to < back:
            reached[to] = 1
    return False

cdef void fold_watch(Vm *vm, uint64_t gva, int size) noexcept nogil:
    """A block is new: if it ends a loop that may be worth it, watch the loop's head."""
    cdef uint8_t tail[6]
    cdef uint8_t code[FOLD_SPAN]
    cdef int bits = code_bits(vm)
    cdef int part = 6 if size >= 6 else size
    cdef int avail, back
    cdef Fold *f
    if bits == 16 or part < 2 or fetch_code(vm, gva + size - part, tail, part) < part:
        return
    if (tail[part - 2] & 0xf0 == 0x70 or tail[part - 2] == 0xeb) and tail[part - 1] & 0x80:
        back = -<int><int8_t>tail[part - 1]
    elif part == 6 and ((tail[0] == 0x0f and tail[1] & 0xf0 == 0x80) or tail[1] == 0xe9) and \
            -FOLD_SPAN <= (<int32_t *>(tail + 2))[0] < 0:
        back = -(<int32_t *>(tail + 2))[0]
    else:
        return
    if back <= size or back > FOLD_SPAN:    # one block: one condition, a delay
        return
    gva += size - back
    avail = fetch_code(vm, gva, code, FOLD_SPAN)
    if not fold_way_round(code, avail, bits, back):
        return
    f = &vm.loops[fold_slot(gva)]
    if f.head == gva or (f.head and not f.retired) or vm.fold_hooks == FOLD_HOOKS:
        return
    memset(f, 0, sizeof(Fold))
    f.vm = vm
    f.head = gva
    f.wait = FOLD_FIRST
    if uc_hook_add(vm.uc, &f.hook, UC_HOOK_BLOCK, <void *>on_loop_head, f, gva, gva) != UC_ERR_OK:
        f.retired = 1
        return
    vm.fold_hooks += 1
    fold_drop_head(vm, gva)
