# SPDX-License-Identifier: GPL-2.0-or-later
# A call of a function of ours, out of a block and in front of an instruction.
#
# All that the function sees of the vCPU is in memory by then, lazy flags included. RIP is not: the
# function gets the address of the instruction.

cdef inline TcgOp *op_before(TcgOp *op) noexcept nogil:
    return <TcgOp *>(<char *>op.link[1] - sizeof(uintptr_t))

cdef inline bint callable_here(Vm *vm) noexcept nogil:
    """Whether an instruction of the block under translation may be replaced by a call: not where a
    single step, RF or an interrupt shadow has to be seen to, and in 64-bit code only.
    """
    return vm.env.hflags & HF_CS64 and not vm.env.hflags & HF_INHIBIT_IRQ and \
        not vm.env.eflags & (FL_TF | FL_RF)

cdef bint emit_call(Vm *vm, uint64_t pc, void *function, uint64_t last,
                    TcgTemp *result) noexcept nogil:
    """Call ``function(vm, pc, last)`` before the instruction at ``pc``, which comes next.

    result: a 32-bit temporary for what it returns, or NULL. False: nothing was put in.
    """
    cdef void *tcg = vm.tcg
    cdef TcgOp *op
    cdef TcgOp *start
    cdef int i, at = 0
    cdef uint64_t args[3]
    # The kind of lazy flags, which the translator knows and has perhaps not stored: it is written
    # down in the mark that begins each instruction, together with the address. 0: it is stored.
    op = tcg_emit_op(tcg, OP_MOVI_I32)
    start = op_before(op)
    if start.head & 0xff == OP_SET_LABEL:
        start = op_before(start)
    if start.args[0] == pc and start.args[1] != 0:
        op.args[0] = <uintptr_t>vm.tcg_cc_op
        op.args[1] = start.args[1]
    else:
        op.args[0] = <uintptr_t>tcg_temp_new(tcg, TCG_TYPE_I32, 0)
        op.args[1] = 0
        if start.args[0] != pc:
            return False
    args[0] = <uint64_t>vm
    args[1] = pc
    args[2] = last
    for i in range(3):          # a TCGv is a TCGTemp by its distance from the TCGContext
        args[i] = <uint64_t>tcg + <uint64_t>tcg_const(tcg, <int64_t>args[i])
    op = tcg_emit_op(tcg, OP_CALL)
    op.head |= 3 << 8           # arguments
    if result != NULL:
        op.head |= 1 << 12
        op.args[0] = <uintptr_t>result
        at = 1
    for i in range(3):
        op.args[at + i] = <uintptr_t>args[i]
    op.args[at + 3] = <uintptr_t>function
    op.args[at + 4] = 0         # reads and writes all registers
    return True
