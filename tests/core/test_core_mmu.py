# SPDX-License-Identifier: GPL-2.0-or-later
"""Address translation against the rules of SDM vol. 3, chapter 4, in every paging mode.

One guest is a server: it carries out a list of probes (read, write or fetch, from the kernel or
from user mode) and its handlers record the faults. What must happen is worked out here from the
entries alone, by a second, slower reading of the manual.
"""

from __future__ import annotations

import itertools
import struct
from dataclasses import dataclass

import pytest
from micro import CR0_WP, CTL_COUNT, GP, NX, PF, PS, A, D, Micro, P, Result, U, W

PROBES, RESULTS = 0x1A000, 0x1D000
KERNEL, USER = 0, 3
READ, WRITE, FETCH = 0, 1, 2
FRAME = 0x180000                      # a page of RET instructions
LARGE = 0x400000                      # a large page of them

SERVER64 = """
    mov r15d, 0x1a000
    mov r12d, 0x1d000
@next:
    mov r14, [r15]
    mov r13, [r15+8]
    cmp r14d, 0xff
    je @finish
    mov rax, [r15+16]
    mov cr0, rax
    mov rax, 0xc3c3c3c3c3c3c3c3
    xor ebx, ebx
    cmp r14d, 0
    je @kread
    cmp r14d, 1
    je @kwrite
    cmp r14d, 2
    je @kfetch
    mov ecx, UDATA
    push rcx
    mov ecx, USER_STACK
    push rcx
    mov ecx, 2
    push rcx
    mov ecx, UCODE
    push rcx
    mov ecx, uread
    cmp r14d, 4
    jb @go
    mov ecx, uwrite
    je @go
    mov ecx, ufetch
@go:
    push rcx
    iretq
@kread:
    mov rbx, [r13]
    jmp done
@kwrite:
    mov [r13], rax
    jmp done
@kfetch:
    call r13
    jmp done
@finish:
    EXIT 1
done:
    mov ecx, CTL
    mov rax, [rcx]
    mov [r12], rax
    mov [r12+8], rbx
    add r12, 16
    add r15, 24
    jmp start.next
.section user
uread:
    mov rbx, [r13]
    int 0x80
uwrite:
    mov [r13], rax
    int 0x80
ufetch:
    call r13
    int 0x80
""".replace("start.next", "next_probe").replace("@next:", "next_probe:")

_TO32 = [("r15d", "edi"), ("r12d", "ebp"), ("r14d", "esi"), ("[r15+16]", "[edi+16]"),
         ("[r15+8]", "[edi+8]"), ("[r15]", "[edi]"), ("[r12+8]", "[ebp+8]"), ("[r12]", "[ebp]"),
         ("r15", "edi"), ("r12", "ebp"), ("r14", "esi"), ("r13", "edx"), ("iretq", "iretd"),
         ("0xc3c3c3c3c3c3c3c3", "0xc3c3c3c3")]


def server(bits: int) -> str:
    if bits == 64:
        return SERVER64
    text = SERVER64
    for wide, narrow in _TO32:
        text = text.replace(wide, narrow)
    for reg in "abcd":
        text = text.replace(f"r{reg}x", f"e{reg}x")
    # A 32-bit IRET to user mode reloads nothing else: give user code usable data segments.
    return text.replace("UCODE", "UCODE32")


@dataclass(frozen=True)
class Probe:
    ring: int
    access: int
    address: int
    wp: bool = True


class Server:
    """The guest, its page tables and its probes."""

    def __init__(self, levels: int, engine: str = "bt") -> None:
        self.bits = 64 if levels == 4 else 32
        self.micro = Micro(server(self.bits), self.bits, paging=levels, engine=engine)
        self.micro.abandon("done")
        self.micro.set_gate(0x80, 0xEE, target=self.micro.symbol("done_user"))
        self.pages = self.micro.pages
        self.ram = self.micro.ram
        self.ram.write(FRAME, b"\xc3" * 0x4000)
        self.ram.write(LARGE, b"\xc3" * 0x400000)
        self.probes: list[Probe] = []

    def probe(self, *args, **kwargs) -> int:
        self.probes.append(Probe(*args, **kwargs))
        return len(self.probes) - 1

    def run(self) -> list[tuple[int, int, int] | None]:
        """For each probe (vector, error, CR2), or None when nothing happened."""
        cr0 = 0x80000011
        image = b"".join(struct.pack("<QQQ", p.access + (3 if p.ring else 0), p.address,
                                     cr0 | (CR0_WP if p.wp else 0)) for p in self.probes)
        assert PROBES + len(image) + 24 <= RESULTS and len(self.probes) < 750
        self.ram.write(PROBES, image + struct.pack("<QQQ", 0xFF, 0, cr0))
        self.result: Result = self.micro.run()
        assert self.result.outcome.status == 1, self.result.outcome
        records = self.result.records
        found: list[tuple[int, int, int] | None] = []
        before = 0
        for i in range(len(self.probes)):
            count = self.result.d(RESULTS + 16 * i)
            assert count - before in (0, 1)
            record = records[before] if count > before else None
            found.append((record.vector, record.error, record.cr2) if record else None)
            before = count
        return found


# The INT 0x80 that ends a user probe: back on the kernel stack, with kernel data segments.
SERVER64 += """
.section text
done_user:
    mov esp, STACK
    jmp done
"""


def reserved(entry: int, level: int, levels: int, nxe: bool) -> bool:
    """SDM vol. 3, tables 4-2 to 4-6, 4-8 to 4-11, 4-15 to 4-20, with MAXPHYADDR = 40."""
    if levels == 2:
        return bool(level == 2 and entry & PS and entry & 1 << 21)
    bad = 0xFFF << 40 if levels == 4 else 0x7FFFFF << 40
    if not nxe:
        bad |= NX
    if levels == 3 and level == 3:
        return False
    if level == 4:
        bad |= PS
    elif level > 1 and entry & PS:
        bad |= ((1 << (12 + 9 * (level - 1))) - 1) & ~0x1FFF
    return bool(entry & bad)


def expected(entries: list[int], levels: int, probe: Probe, nxe: bool = True) -> int | None:
    """The error code of the page fault, or None. ``entries``: from the root down."""
    error = (2 if probe.access == WRITE else 0) | (4 if probe.ring else 0)
    if probe.access == FETCH and nxe and levels > 2:
        error |= 16
    user = writable = True
    execute = True
    for i, entry in enumerate(entries):
        level = levels - i
        if not entry & P:
            return error
        if reserved(entry, level, levels, nxe):
            return error | 1 | 8
        if levels == 3 and level == 3:
            continue
        user &= bool(entry & U)
        writable &= bool(entry & W)
        execute &= not entry & NX
    if probe.ring and not user:
        return error | 1
    if probe.access == WRITE and not writable and (probe.ring or probe.wp):
        return error | 1
    if probe.access == FETCH and not execute and levels > 2:
        return error | 1
    return None


ALL_PROBES = [(ring, access, wp) for ring in (KERNEL, USER) for access in (READ, WRITE, FETCH)
              for wp in (True, False)]


def check(server: Server, cases: list[tuple[list[int], int]]) -> None:
    """Probe each case (entries from the root down, address) in every way."""
    want = []
    for entries, address in cases:
        for ring, access, wp in ALL_PROBES:
            server.probe(ring, access, address, wp)
            want.append(expected(entries, server.pages.levels, server.probes[-1]))
    got = server.run()
    wrong = []
    for probe, error, seen in zip(server.probes, want, got, strict=True):
        fault = None if error is None else (PF, error, probe.address)
        if seen != fault:
            wrong.append((probe, "expected", fault, "got", seen))
    assert not wrong, wrong[:5]


def leaves(levels: int) -> list[int]:
    """Flags of the leaf entries that are worth trying."""
    rights = [p | w | u for p, w, u in itertools.product((P,), (0, W), (0, U))]
    if levels == 2:
        return [0, W | U] + rights
    extra = [NX, 1 << 40, 1 << 51] + ([1 << 52, 1 << 62] if levels == 3 else [])
    return [0, NX] + rights + [r | NX for r in rights] + [P | W | U | e for e in extra[1:]]


HIGH = {2: 0xD0000000, 3: 0xD0000000, 4: 0xFFFF_9000_0000_0000}


@pytest.mark.parametrize("levels", [2, 3, 4])
def test_rights_of_small_pages(levels: int) -> None:
    server = Server(levels)
    cases = []
    for i, flags in enumerate(leaves(levels)):
        at = HIGH[levels] + i * 0x1000
        server.pages.map(at, FRAME, flags)
        path = [P | W | U] * (levels - 1)
        cases.append((path + [FRAME | flags], at + 0x128))
    check(server, cases)


@pytest.mark.parametrize(("levels", "level"), [(2, 2), (3, 2), (4, 2), (4, 3)])
def test_rights_of_large_pages(levels: int, level: int) -> None:
    server = Server(levels)
    size = 1 << (12 + (level - 1) * (10 if levels == 2 else 9))
    frame = 0 if size > 1 << 22 else LARGE
    cases = []
    flags = leaves(levels) + ([P | W | U | 1 << 21] if size == 1 << 22 else [P | W | U | 1 << 13])
    if level == 3:
        flags += [P | W | U | 1 << 29]
    for i, flag in enumerate(flags[:28]):
        at = HIGH[levels] + i * size if size < 1 << 22 or levels == 4 else 0x40000000 + i * size
        server.pages.map(at, frame, flag, level)
        path = [P | W | U] * (levels - level)
        offset = LARGE + 0x10_0128 - frame
        cases.append((path + [frame | flag | PS], at + offset))
    check(server, cases)


@pytest.mark.parametrize("levels", [2, 3, 4])
def test_rights_of_upper_levels_narrow_the_leaf(levels: int) -> None:
    """A leaf with all rights below tables that have fewer."""
    server = Server(levels)
    cases = []
    bits = 10 if levels == 2 else 9
    for level in range(2, levels + 1):
        if levels == 3 and level == 3:
            continue
        for i, flags in enumerate((0, P, P | W, P | U, P | W | U | (NX if levels > 2 else A))):
            step = 1 << (12 + bits * (level - 1))
            at = HIGH[levels] + (i + 1 if level < levels or levels == 2 else -20 - i) * step
            if level == 3 and levels == 4:
                at += 64 * step
            at &= (1 << 64) - 1 if levels == 4 else (1 << 32) - 1
            server.pages.map(at, FRAME, P | W | U)
            slot = server.pages.slot(at, level)
            server.pages.put(slot, server.pages.get(slot) & ~0xFFF | flags)
            path = [P | W | U] * (levels - level) + [flags] + [P | W | U] * (level - 1)
            cases.append((path, at + 8))
    check(server, cases)


def test_bit_7_of_a_pml4_entry_is_reserved() -> None:
    server = Server(4)
    at = 0xFFFF_A000_0000_0000
    server.pages.map(at, FRAME, P | W | U)
    slot = server.pages.slot(at, 4)
    server.pages.put(slot, server.pages.get(slot) | PS)
    check(server, [([P | W | U | PS, P | W | U, P | W | U, P | W | U], at)])


@pytest.mark.parametrize("levels", [2, 3, 4])
@pytest.mark.parametrize("ring", [KERNEL, USER])
@pytest.mark.parametrize("access", [READ, WRITE])
def test_cr2_is_exact_where_an_access_crosses_pages(levels: int, ring: int, access: int) -> None:
    """The faulting byte's page decides: the access's own address, or the second page's first."""
    server = Server(levels)
    base = HIGH[levels]
    width = 8 if levels == 4 else 4
    both = P | W | U
    for i, flags in enumerate((both, 0, both, P | U if access == WRITE else P, both)):
        server.pages.map(base + i * 0x1000, FRAME + (i & 3) * 0x1000, flags)
    inside = base + 0x1000 - width // 2            # into a page that is absent
    from_absent = base + 0x2000 - width // 2       # out of one
    refused = base + 0x3000 - width // 2           # into a page without the right
    for address in (inside, from_absent, refused):
        server.probe(ring, access, address)
    got = server.run()
    error = (4 if ring else 0) | (2 if access == WRITE else 0)
    assert got[0] == (PF, error, base + 0x1000)
    assert got[1] == (PF, error, from_absent)
    if access == WRITE or ring == USER:
        assert got[2] == (PF, error | 1, base + 0x3000)
    else:
        assert got[2] is None
    if access == WRITE:
        assert server.ram.read(FRAME, 0x3000) == b"\xc3" * 0x3000


@pytest.mark.parametrize("levels", [3, 4])
def test_an_instruction_that_crosses_into_a_page_it_may_not_fetch(levels: int) -> None:
    server = Server(levels)
    base = HIGH[levels]
    server.pages.map(base, FRAME, P | W | U)
    server.pages.map(base + 0x1000, FRAME + 0x1000, P | W | U | NX)
    server.ram.write(FRAME + 0xFFE, b"\xb8\x01")              # MOV EAX, imm32
    server.probe(KERNEL, FETCH, base + 0xFFE)
    server.probe(USER, FETCH, base + 0xFFE)
    got = server.run()
    assert got[0] == (PF, 1 | 16, base + 0x1000)
    assert got[1] == (PF, 1 | 4 | 16, base + 0x1000)


@pytest.mark.parametrize("levels", [2, 3, 4])
@pytest.mark.parametrize("access", [READ, WRITE, FETCH])
def test_accessed_and_dirty(levels: int, access: int) -> None:
    """A in every entry used, D in the leaf by a write only; a refused access leaves D alone."""
    server = Server(levels)
    at, other = HIGH[levels], HIGH[levels] + 0x400000
    leaf = server.pages.map(at, FRAME, P | W | U)
    refused = server.pages.map(other, FRAME, P | U)
    server.probe(KERNEL, access, at + 16)
    server.probe(USER, WRITE, other + 16)
    server.run()
    assert server.pages.get(leaf) & (A | D) == (A | D if access == WRITE else A)
    assert not server.pages.get(refused) & D
    for level in range(2, levels + 1):
        if (levels, level) != (3, 3):
            assert server.pages.get(server.pages.slot(at, level)) & A


@pytest.mark.parametrize(("levels", "level"), [(2, 2), (3, 2), (4, 2), (4, 3)])
def test_dirty_after_a_read_of_a_large_page(levels: int, level: int) -> None:
    server = Server(levels)
    at = HIGH[levels] if level < 3 else 0xFFFF_9100_0000_0000
    leaf = server.pages.map(at, 0 if level == 3 else LARGE, P | W | U, level)
    offset = LARGE if level == 3 else 0
    server.probe(KERNEL, READ, at + offset + 8)
    server.run()
    assert server.pages.get(leaf) & (A | D) == A
    server = Server(levels)
    leaf = server.pages.map(at, 0 if level == 3 else LARGE, P | W | U, level)
    server.probe(KERNEL, READ, at + offset + 8)
    server.probe(USER, WRITE, at + offset + 8)
    server.run()
    assert server.pages.get(leaf) & (A | D) == A | D


@pytest.mark.parametrize("access", [READ, WRITE, FETCH])
@pytest.mark.parametrize("address", [0x0000_8000_0000_0000, 0x1234_0000_0000_0000,
                                     0xFFFF_7FFF_FFFF_FFF8, 0x8000_0000_0000_0000])
def test_non_canonical_addresses(address: int, access: int) -> None:
    server = Server(4)
    server.probe(KERNEL, access, address)
    if access != FETCH:
        server.probe(USER, access, address)
    for seen in server.run():
        assert seen is not None
        assert seen[:2] == (GP, 0)


def test_access_that_runs_off_the_lower_half() -> None:
    """The last bytes below the hole are mapped, the next are not canonical: #GP(0)."""
    server = Server(4)
    server.pages.map(0x7FFF_FFFF_F000, FRAME, P | W | U)
    server.probe(KERNEL, READ, 0x7FFF_FFFF_FFFC)
    server.probe(USER, READ, 0x7FFF_FFFF_FFFC)
    assert [seen and seen[:2] for seen in server.run()] == [(GP, 0), (GP, 0)]


@pytest.mark.parametrize("engine", ["bt", "trap", "hvm"])
def test_no_paging_reads_ones_above_ram(engine: str) -> None:
    micro = Micro("""
    mov ebx, 0x40000000
    mov dword ptr [ebx], 0x12345678
    mov eax, [ebx]
    mov ecx, CTL
    mov [ecx+32], eax
    mov ebx, 0x7ffffe
    mov eax, [ebx]
    mov [ecx+36], eax
    EXIT 1
    """, 32, engine=engine)
    micro.ram.write(0x7FFFFE, b"\x11\x22")
    result = micro.run()
    assert result.outcome.status == 1
    assert result.d(CTL_COUNT + 32) == 0xFFFFFFFF
    assert result.d(CTL_COUNT + 36) == 0xFFFF2211


@pytest.mark.parametrize("where", [1 << 33, 0xFF_FFFF_F000])
def test_memory_above_ram_reads_ones_and_drops_writes(where: int) -> None:
    micro = Micro("""
    mov rbx, 0xffff900000000000
    mov qword ptr [rbx+8], 0x1234
    mov rax, [rbx+8]
    movzx ecx, byte ptr [rbx+3]
    mov ebx, CTL
    mov [rbx+32], rax
    mov [rbx+40], rcx
    EXIT 1
    """)
    micro.pages.map(0xFFFF_9000_0000_0000, where, P | W)
    result = micro.run()
    assert result.outcome.status == 1
    assert result.q(CTL_COUNT + 32) == (1 << 64) - 1
    assert result.q(CTL_COUNT + 40) == 0xFF
    assert result.exit("absent memory") >= 3      # Unicorn halves 8-byte accesses


INVALIDATE = """
    mov r13, 0xffff900000000000
    mov r14d, slot
    mov r14, [r14]
    mov r15d, slot
    mov r15, [r15+8]
    mov rbx, [r13]              ; the translation is cached
    mov rax, [r14]
    mov [r14], r15              ; now it names another page
    {how}
    mov rcx, [r13]
    mov edx, CTL
    mov [rdx+32], rbx
    mov [rdx+40], rcx
    EXIT 1
.align 8
slot: .quad 0, 0
"""


@pytest.mark.parametrize("how", ["invlpg [r13]", "mov rax, cr3\n mov cr3, rax",
                                 "mov rax, cr4\n mov rcx, rax\n xor rcx, 0x80\n mov cr4, rcx\n"
                                 "mov cr4, rax"])
@pytest.mark.parametrize("engine", ["bt", "trap", "hvm"])
def test_a_changed_entry_counts_after_invalidation(how: str, engine: str) -> None:
    micro = Micro(INVALIDATE.format(how=how), engine=engine)
    slot = micro.pages.map(0xFFFF_9000_0000_0000, 0x180000, P | W)
    micro.ram.write(0x180000, (0x1111).to_bytes(8, "little"))
    micro.ram.write(0x181000, (0x2222).to_bytes(8, "little"))
    micro.ram.write(micro.symbol("slot"), struct.pack("<QQ", slot, 0x181000 | P | W))
    result = micro.run()
    assert result.outcome.status == 1, result.outcome
    assert result.q(CTL_COUNT + 32) == 0x1111
    assert result.q(CTL_COUNT + 40) == 0x2222


@pytest.mark.parametrize("narrower", [0, P, P | W | NX])
def test_rights_taken_away_count_after_invlpg(narrower: int) -> None:
    """Unmapped, made read-only, made unexecutable: after INVLPG each faults as it should."""
    micro = Micro("""
    mov r13, 0xffff900000000000
    mov byte ptr [r13], 0xc3
    call r13
    mov rax, [slot]
    mov rcx, [slot+8]
    mov [rax], rcx
    invlpg [r13]
    mov rbx, [r13]
    mov [r13], rbx
    call r13
    EXIT 1
.align 8
slot: .quad 0, 0
    """)
    slot = micro.pages.map(0xFFFF_9000_0000_0000, 0x180000, P | W)
    micro.ram.write(micro.symbol("slot"), struct.pack("<QQ", slot, 0x180000 | narrower))
    result = micro.run()
    seen = [(r.vector, r.error) for r in result.records]
    first = {0: (PF, 0), P: (PF, 3), P | W | NX: (PF, 1 | 16)}[narrower]
    assert seen == [first]
    assert result.records[0].cr2 == 0xFFFF_9000_0000_0000


def test_upgrade_needs_no_invalidation() -> None:
    """A fault that finds the entry fixed goes on: no stale 'not present' is kept (SDM 4.10.2.3)."""
    micro = Micro("""
    mov r13, 0xffff900000000000
    mov rbx, [r13]
    mov rax, [slot]
    mov rcx, [slot+8]
    mov [rax], rcx
    mov rbx, [r13]
    mov [r13+8], rbx
    EXIT 1
fix:
    push rax
    push rcx
    mov rax, [slot]
    or qword ptr [rax], 1
    pop rcx
    pop rax
    add rsp, 8
    iretq
.align 8
slot: .quad 0, 0
    """)
    slot = micro.pages.map(0xFFFF_9000_0000_0000, 0x180000, W)
    micro.ram.write(0x180000, (0x7777).to_bytes(8, "little"))
    micro.ram.write(micro.symbol("slot"), struct.pack("<QQ", slot, 0x180000 | P | W))
    micro.set_gate(PF, target=micro.symbol("fix"))
    result = micro.run()
    assert result.outcome.status == 1, result.outcome
    assert micro.ram.read(0x180008, 8) == (0x7777).to_bytes(8, "little")


@pytest.mark.parametrize("cr3", [0x900000, 0xF_FFFF_F000, 0x40_0000_0000])
def test_tables_outside_ram_end_in_a_report(cr3: int) -> None:
    """A CR3 that leads nowhere: every access faults, also the IDT's: triple fault, not a crash."""
    micro = Micro(f"mov rax, {cr3:#x}\n mov cr3, rax\n nop\n EXIT 1")
    result = micro.run()
    assert (result.outcome.kind, result.outcome.status) == ("died", 3)
    assert "triple fault" in result.outcome.report


def test_nx_is_reserved_without_efer_nxe() -> None:
    micro = Micro("""
    mov ecx, 0xc0000080
    rdmsr
    and eax, 0xfffff7ff
    wrmsr
    mov r13, 0xffff900000000000
    mov rax, [r13]
    EXIT 1
    """)
    micro.pages.map(0xFFFF_9000_0000_0000, FRAME, P | W | NX)
    record = micro.run().records[0]
    assert (record.vector, record.error) == (PF, 9)
