# SPDX-License-Identifier: GPL-2.0-or-later
"""Hooks on exits: seen, changed, refused, replaced; the same under every engine that can see them.

The guests end with a status they computed from what the instruction gave them.
"""

from __future__ import annotations

import pytest
from golden import GOLDEN
from micro import GP, UD, Micro
from ticking import timer

from bt.core.svm import CODES, UNSEEN
from bt.errors import InputError
from bt.machine.exit_reasons import find_reasons, reasons
from bt.machine.exits import Exit
from translator.sensitive import TABLE, Row

ENGINES = pytest.mark.parametrize("engine", ["bt", "trap", "hvm"])
CPUID = """
    mov r12d, 200
@again:
    mov eax, 7
    xor ecx, ecx
    cpuid
    dec r12d
    jnz @again
    mov al, bl
    mov dx, 0x501
    out dx, al
    hlt
"""


def status(micro: Micro) -> int:
    result = micro.run()
    assert result.outcome.kind == "powered-off", result.outcome.report or result.outcome
    return result.outcome.status


@ENGINES
def test_cpuid_is_seen_and_substituted(engine: str) -> None:
    micro = Micro(CPUID, engine=engine)
    seen = []

    @micro.machine.on_exit("cpuid", when="after")
    def hide(exit: Exit) -> None:
        eax, ebx, ecx, edx = exit.result
        seen.append((exit.leaf, exit.subleaf, exit.cpl, exit.text))
        exit.result = (eax, 0x5A, ecx, edx)

    assert status(micro) == 0x5A
    assert seen == [(7, 0, 0, "cpuid")] * 200


@ENGINES
def test_a_result_given_before_skips_the_instruction(engine: str) -> None:
    micro = Micro(CPUID, engine=engine)

    @micro.machine.on_exit("CPUID")
    def answer(exit: Exit) -> None:
        exit.result = (1, 0x77, 3, 4)

    policy = micro.machine.vcpu
    assert status(micro) == 0x77
    assert policy.registers()["rax"] == 0x77  # AL took BL; the rest is what the hook gave
    assert policy.registers()["rcx"] == 3


def test_an_instruction_can_be_refused() -> None:
    micro = Micro("""
    mov ecx, 0xc0000080
    rdmsr
    EXIT 1
bad:
    EXIT 2
""")
    micro.resume("bad")

    @micro.machine.on_exit("rdmsr")
    def refuse(exit: Exit) -> None:
        assert exit.msr == 0xC0000080
        if exit.rip == micro.symbol("start") + 5:
            exit.inject(GP, 0x18)

    assert status(micro) == 2
    assert int.from_bytes(micro.ram.read(0x8000, 8), "little") == GP
    assert int.from_bytes(micro.ram.read(0x8008, 8), "little") == 0x18


def test_a_skipped_instruction_does_nothing() -> None:
    micro = Micro("""
    mov rax, cr0
    mov rbx, rax
    or rbx, 8
    mov cr0, rbx
    mov rax, cr0
    shr eax, 3
    and al, 1
    mov dx, 0x501
    out dx, al
    hlt
""")

    @micro.machine.on_exit("mov to cr")
    def skip(exit: Exit) -> None:
        if exit.register == 0 and exit.value & 8:
            exit.skip()

    assert status(micro) == 0


def test_mov_from_cr_substituted_after() -> None:
    micro = Micro("""
    mov r13, cr4
    mov eax, r13d
    mov dx, 0x501
    out dx, al
    hlt
""")

    @micro.machine.on_exit("mov_from_cr", when="after")
    def lie(exit: Exit) -> None:
        if exit.register == 4:
            assert exit.result & 0x20
            exit.result = 0x42

    assert status(micro) == 0x42


def test_hooks_take_stubs_back_and_give_them_back() -> None:
    """A stub would pass the hook by; when nobody hooks the row, it may become one again."""
    micro = Micro("""
    mov r12d, 500
@one:
    cli
    nop dword ptr [rax + 8]
    dec r12d
    jnz @one
    mov r12d, 100
    out 0x99, al
    jmp @body
@body:
    call loop
    EXIT 3
loop:
    cli
    nop dword ptr [rax + 8]
    dec r12d
    jnz loop
    ret
""")
    counted = [0]

    def count(exit: Exit) -> None:
        counted[0] += 1

    @micro.machine.on_exit("port write")
    def from_here_on(exit: Exit) -> None:
        if exit.port == 0x99:
            assert micro.machine.stats.to_json()["translator"]["stub_installed"] == 1
            micro.machine.on_exit("cli")(count)

    assert status(micro) == 3
    assert counted[0] == 100
    assert micro.machine.stats.to_json()["translator"]["stub_taken_back"] == 1
    assert micro.machine.stats.to_json()["translator"]["stub_installed"] == 1
    micro.machine.hooks.remove(count)
    assert not micro.machine.hooks.wanted(0, 1)


@pytest.mark.parametrize("when", ["before", "after"])
def test_a_hook_that_raises_ends_the_run_and_the_machine_stays(when: str) -> None:
    micro = Micro(CPUID)
    calls = []

    @micro.machine.on_exit("cpuid", when=when)
    def broken(exit: Exit) -> None:
        calls.append(exit.rip)
        raise ZeroDivisionError("in the hook")

    with pytest.raises(ZeroDivisionError, match="in the hook"):
        micro.run()
    cpuid = micro.symbol("start") + 6 + 5 + 2
    assert calls == [cpuid]
    assert micro.machine.registers["rip"] == (cpuid if when == "before" else cpuid + 2)
    assert micro.machine.memory.read(cpuid, 2) == b"\x0f\xa2"
    micro.machine.hooks.remove(broken)
    outcome = micro.machine.run(timeout=20)
    assert outcome.kind == "powered-off"
    assert micro.machine.stats.exits["control"]["CPUID"] == (201 if when == "before" else 200)


@ENGINES
def test_ports_are_seen_and_answered(engine: str) -> None:
    micro = Micro("""
    mov edx, 0x3333
    in al, dx
    mov bl, al
    mov edx, 0x71
    in al, dx
    add al, bl
    mov dx, 0x501
    out dx, al
    hlt
""", engine=engine)
    seen = []

    @micro.machine.on_exit("port")
    def log(exit: Exit) -> None:
        seen.append((exit.reason, exit.port, exit.size))
        if exit.port == 0x3333:
            exit.result = 0x11

    @micro.machine.on_exit("port read", when="after")
    def change(exit: Exit) -> None:
        assert exit.result == exit.value
        exit.result = 0x22

    assert status(micro) == 0x33
    assert seen == [("port read", 0x3333, 1), ("port read", 0x71, 1), ("port write", 0x501, 1)]


def test_string_output_is_seen_element_by_element() -> None:
    micro = Micro("""
    lea rsi, [text]
    mov ecx, 5
    mov edx, 0x99
    rep outsb
    EXIT 0
text:
    .ascii "hello"
""")
    got = bytearray()

    @micro.machine.on_exit("port write")
    def take(exit: Exit) -> None:
        if exit.port == 0x99:
            got.append(exit.value)

    assert status(micro) == 0
    assert got == b"hello"


@ENGINES
def test_exceptions_are_seen_replaced_and_dropped(engine: str) -> None:
    micro = Micro("""
    ud2
    EXIT 1
good:
    EXIT 2
""", engine=engine)
    micro.resume("good")
    seen = []

    @micro.machine.on_exit("#UD")
    def other(exit: Exit) -> None:
        seen.append((exit.reason, exit.unit, exit.vector, exit.rip))
        exit.inject(GP, 8)

    assert status(micro) == 2
    assert seen == [("exception #UD", "control", UD, micro.symbol("start"))]
    assert int.from_bytes(micro.ram.read(0x8000, 8), "little") == GP

    micro = Micro("ud2\nEXIT 1", engine=engine)

    @micro.machine.on_exit("exception 6")
    def emulate(exit: Exit) -> None:
        exit.registers["rip"] += 2  # as if UD2 were a NOP
        exit.skip()

    assert status(micro) == 1


@ENGINES
def test_a_page_fault_is_mended_by_the_hook(engine: str) -> None:
    """The guest touches what is not mapped; the hook maps it, and the guest notices nothing."""
    micro = Micro("""
    mov rbx, 0xffff900000000123
    mov al, [rbx]
    mov dx, 0x501
    out dx, al
    hlt
""", engine=engine)
    micro.ram.write(0x300123, b"\x66")
    seen = []

    @micro.machine.on_exit("page fault")
    def map_it(exit: Exit) -> None:
        seen.append((exit.unit, exit.gva, exit.access, exit.error))
        micro.pages.map(exit.gva & ~0xFFF, 0x300000, 1)
        exit.skip()

    assert status(micro) == 0x66
    assert seen == [("memory", 0xFFFF900000000123, "read", 0)]


#: STAR and LSTAR: SYSCALL leads to the label ``kernel``.
SYSCALL_MSRS = """
    mov ecx, 0xc0000081
    mov edx, 0x00230010
    xor eax, eax
    wrmsr
    mov ecx, 0xc0000082
    lea rax, [kernel]
    xor edx, edx
    wrmsr
"""


@ENGINES
def test_system_calls_and_software_interrupts(engine: str) -> None:
    micro = Micro(SYSCALL_MSRS + """
    int 0x80
    mov ecx, 0xc0000084
    xor eax, eax
    xor edx, edx
    wrmsr
    push 0x2b
    push 0xb0000
    push 2
    push 0x33
    push user_code
    iretq
kernel:
    mov esp, 0x90000
    mov dx, 0x501
    out dx, al
    hlt
.section user
user_code:
    mov eax, 0x2a
    syscall
    int3
""", engine=engine)
    seen = []

    @micro.machine.on_exit("software interrupt")
    def skip(exit: Exit) -> None:
        seen.append((exit.reason, exit.vector, exit.cpl))
        exit.skip()

    @micro.machine.on_exit("syscall")
    def note(exit: Exit) -> None:
        seen.append((exit.reason, exit.number, exit.cpl))
        exit.registers["rax"] = 0x2B

    @micro.machine.on_exit("syscall", when="after")
    def entered(exit: Exit) -> None:
        seen.append((exit.when, exit.registers["rip"], exit.registers["cpl"]))

    assert status(micro) == 0x2B
    assert seen == [("software interrupt", 0x80, 0), ("syscall", 0x2A, 3),
                    ("after", micro.symbol("kernel"), 0)]


def test_memory_unit_exits_are_seen() -> None:
    micro = Micro("""
    mov rbx, 0x40000000
    mov eax, [rbx]
    mov byte ptr [patched], 0x90
    EXIT 4
patched:
    nop
""")
    micro.pages.map(0x40000000, 0x40000000, 3)
    seen: dict[str, list[Exit]] = {}

    @micro.machine.on_exit("absent memory", "code page written", "page became code", "translation",
                           "block scanned")
    def see(exit: Exit) -> None:
        seen.setdefault(exit.reason, []).append(exit)
        if exit.reason == "absent memory":
            exit.result = 0xABCD

    assert status(micro) == 4
    assert micro.machine.registers["rbx"] == 0x40000000
    assert [(e.gpa, e.size, e.access) for e in seen["absent memory"]] == \
        [(0x40000000, 4, "read")]
    page = micro.symbol("start") & ~0xFFF
    assert page in [e.gpa for e in seen["code page written"]]
    assert page in [e.gpa for e in seen["page became code"]]
    assert 0x40000000 in [e.gva for e in seen["translation"]]
    assert all(e.unit == ("control" if e.reason == "block scanned" else "memory")
               for exits in seen.values() for e in exits)


def test_a_translation_can_be_refused() -> None:
    micro = Micro("""
    mov rbx, 0x300000
    mov eax, [rbx]
    EXIT 1
caught:
    EXIT 2
""")
    micro.resume("caught")

    @micro.machine.on_exit("translation")
    def refuse(exit: Exit) -> None:
        if exit.gva == 0x300000:
            with pytest.raises(ValueError, match="registers cannot change"):
                exit.registers["rax"] = 1
            with pytest.raises(ValueError, match="cannot be skipped"):
                exit.skip()
            exit.inject(14, 0x1)

    assert status(micro) == 2
    assert int.from_bytes(micro.ram.read(0x8008, 8), "little") == 1


def test_what_a_hook_writes_over_code_is_what_runs() -> None:
    """By virtual and by physical address."""
    micro = Micro("""
    xor r15d, r15d
    mov r12d, 3
@again:
    out 0x99, al
    call target
    dec r12d
    jnz @again
    mov eax, r15d
    mov dx, 0x501
    out dx, al
    hlt
.section other
target:
    add r15d, 1
    ret
""")
    target = micro.symbol("target")
    values = iter((1, 2, 0x10))

    @micro.machine.on_exit("out")
    def patch(exit: Exit) -> None:
        if exit.port == 0x99:
            value = next(values)
            if value == 2:
                exit.memory.write(target + 3, b"\x02")
            elif value == 0x10:
                micro.machine.physical[target + 3] = 0x10

    assert status(micro) == 0x13
    assert micro.machine.physical[target:target + 4] == micro.machine.memory.read(target, 4)


def test_interrupts_are_seen_with_their_vector() -> None:
    micro = timer("hlt", 0xFFFF)
    seen = []

    @micro.machine.on_exit("irq")
    def see(exit: Exit) -> None:
        seen.append(exit.vector)

    assert status(micro) == 1
    assert seen == [0x20]


def test_names() -> None:
    assert "cpuid" in reasons() and "port" in reasons()
    for name in reasons():
        assert find_reasons(name)
    assert find_reasons("#pf") == find_reasons("page fault")
    assert len(find_reasons("exception")) == 32
    with pytest.raises(InputError, match="no exit 'cpudi': perhaps 'cpuid'"):
        find_reasons("cpudi")
    micro = Micro("EXIT 0")
    with pytest.raises(InputError, match="when is"):
        micro.machine.on_exit("cpuid", when="during")(print)


def test_parameters_and_what_cannot_be_had() -> None:
    micro = Micro(CPUID)

    @micro.machine.on_exit("cpuid")
    def look(exit: Exit) -> None:
        assert exit.parameters == {"leaf": 7, "subleaf": 0}
        assert exit.hardware_code is None
        assert exit.code == b"\x0f\xa2" and exit.bits == 64
        with pytest.raises(AttributeError):
            print(exit.port)
        with pytest.raises(ValueError, match="has no result"):
            print(exit.result)
        with pytest.raises(ValueError, match="no exception"):
            exit.inject(32)

    status(micro)


def test_registers_by_name() -> None:
    micro = Micro("EXIT 0")
    micro.enter()
    regs = micro.machine.registers
    regs["rax"] = 0x1_2345_6789
    assert regs["eax"] == 0x2345_6789
    regs["eax"] = 5
    assert regs["rax"] == 5
    with pytest.raises(KeyError):
        regs["nothing"]
    with pytest.raises(KeyError):
        regs["cs"] = 3
    with pytest.raises(ValueError, match="canonical"):
        regs["rip"] = 1 << 60
    assert set(regs) >= {"rax", "rip", "cs", "cr3"}
    with pytest.raises(InputError, match="mapped"):
        micro.machine.memory.read(0xFFFF_8000_0000_0000, 4)


def test_hypercalls_of_our_own_interface() -> None:
    """Every hypercall once, by the core's own count; one is answered in its place."""
    import guests
    from bt.machine.machine import Machine
    from translator.pvabi import NUMBERS

    vm = Machine(engine="pv", deterministic=True)
    vm.load(guests.image("tasks-pv"))
    made: dict[int, int] = {}

    @vm.on_exit("hypercall", when="after")
    def count(exit: Exit) -> None:
        made[exit.number] = made.get(exit.number, 0) + 1
        if exit.number == NUMBERS["version"]:
            assert exit.result == 1
            exit.result = -5

    @vm.on_exit("hypercall")
    def answer(exit: Exit) -> None:
        if exit.number == NUMBERS["features"]:
            exit.result = 0

    outcome = vm.run(timeout=20)
    assert outcome.kind == "powered-off"
    counted = vm.vcpu.hypercalls()
    never_return = {NUMBERS["iret"], NUMBERS["sysret"], NUMBERS["features"]}
    assert made == {n: count for n, count in enumerate(counted) if count and n not in never_return}


@pytest.mark.slow
def test_hypercalls_of_a_xen_domain() -> None:
    """A hook sees exactly what the core counts; IRET, which does not return, is no call to hook."""
    from bt import Machine
    from bt.xen.abi import HYPERCALLS

    vm = Machine.linux(["true"], engine="pv", append="quiet")
    made: dict[str, int] = {}
    system_calls = [0]

    @vm.on_exit("hypercall")
    def count(exit: Exit) -> None:
        name = HYPERCALLS[exit.number]
        made[name] = made.get(name, 0) + 1

    @vm.on_exit("syscall")
    def system_call(exit: Exit) -> None:
        assert exit.cpl == 3
        system_calls[0] += 1

    assert vm.run(timeout=120).kind == "powered-off"
    counted = {name: count for name, count in vm.stats.to_json()["hypercalls"].items()
               if not name.startswith("(") and name != "iret"}
    assert made == counted
    assert system_calls[0] == vm.stats.exits["control"]["SYSCALL"]


def test_what_the_hardware_cannot_intercept_is_refused() -> None:
    micro = Micro("cli", engine="hvm")
    seen: list[str] = []

    def note(exit: Exit) -> None:
        seen.append(exit.reason)

    for name in sorted(UNSEEN):
        with pytest.raises(InputError, match=f"engine hvm: AMD-V cannot intercept {name}$"):
            micro.machine.on_exit(name.lower())(note)
    micro = Micro("cli\n sgdt [0x7000]" + CPUID, engine="hvm")
    micro.machine.on_exit("instruction")(note)      # of a group, what there is
    micro.run()
    assert {"sgdt", "cpuid"} <= set(seen)
    assert not {name.lower().replace("_", " ") for name in UNSEEN} & set(seen)


@pytest.mark.parametrize("engine", ["bt", "hvm"])
@pytest.mark.parametrize("row", [row for row in TABLE if row.name not in ("SYSCALL", "SYSENTER")],
                         ids=lambda row: row.name)
def test_every_instruction_is_seen_or_refused(row: Row, engine: str) -> None:
    """Each once as the manuals write it. That it may fault behind the hook is not the point."""
    bits = max(row.modes)
    code = next(g.code for g in GOLDEN if g.row == row.name and g.bits == bits)
    stack, buffer = ("rsp", "rax") if bits == 64 else ("esp", "eax")
    micro = Micro(f"""
    lea {buffer}, [buffer]
    mov ecx, 1
    .byte {", ".join(map(hex, (*code, *bytes(8))))}
    EXIT 1
faulted:
    EXIT 2
.section data
buffer:
    .quad 0, 0
""", engine=engine, bits=bits)
    micro.resume("faulted")
    seen = []
    try:
        micro.machine.on_exit(row.name)(lambda exit: seen.append(exit.reason))
    except InputError:
        assert engine == "hvm" or not (row.kernel or row.user)
        with pytest.raises(InputError):     # ... and that leaves nothing behind
            micro.machine.on_exit(row.name, when="after")(print)
        assert not any(micro.machine.hooks.wanted(row.id, phase) for phase in (1, 2))
        return
    micro.run()
    assert set(seen) == {row.name.lower().replace("_", " ")}


def test_what_to_hook_instead() -> None:
    hooks = {engine: Micro("EXIT 0", engine=engine).machine.on_exit for engine in ("bt", "hvm")}
    for engine, name, message in (
            ("bt", "vmcall", "VMCALL is no exit of its own here: hook '#UD'"),
            ("hvm", "vmcall", "VMCALL is no exit of its own here: hook '#UD'"),
            ("hvm", "mwait", "MWAIT is no exit of its own here: hook '#UD'"),
            ("bt", "int3", "INT3 is no exit of its own here: hook 'software interrupt'"),
            ("bt", "pause", "PAUSE just runs under this engine: it cannot be hooked")):
        with pytest.raises(InputError) as raised:
            hooks[engine](name)(print)
        assert str(raised.value) == message


def test_invd_has_its_own_number() -> None:
    """Unicorn has the intercept of WBINVD for both."""
    micro = Micro("invd\n wbinvd\n EXIT 0", engine="hvm")
    seen = []
    micro.machine.on_exit("invd", "wbinvd")(lambda exit: seen.append(exit.hardware_code))
    assert status(micro) == 0
    assert seen == [CODES["INVD"], CODES["WBINVD"]]


SYSTEM_CALL = SYSCALL_MSRS + """
    mov ecx, 0x174
    mov eax, KCODE
    wrmsr
    mov ecx, 0x176
    lea rax, [kernel]
    wrmsr
    mov eax, 0x2a
    {entry}
kernel:
    EXIT 5
"""


@ENGINES
@pytest.mark.parametrize("entry", ["syscall", "sysenter"])
def test_both_system_calls_are_seen(entry: str, engine: str) -> None:
    micro = Micro(SYSTEM_CALL.format(entry=entry), engine=engine)
    seen = []
    for when in ("before", "after"):
        micro.machine.on_exit(entry, when=when)(lambda exit: seen.append((exit.when, exit.number)))
    assert status(micro) == 5
    assert seen == [("before", 0x2A), ("after", 0x2A)]


@pytest.mark.parametrize(("engine", "names", "left"), [
    ("hvm", ("cpuid", "cli"), "cpuid"),
    ("hvm", ("port", "exception", "cpuid", "vmcall"), "port read"),
    ("bt", ("cpuid", "cpudi"), "cpuid"),
    ("trap", ("cpuid", "cpudi"), "cpuid"),
    ("hvm", ("cpuid", "cpudi"), "cpuid"),
    ("bt", ("cpuid", "pause"), "cpuid"),
])
def test_a_refusal_leaves_no_hook(engine: str, names: tuple[str, ...], left: str) -> None:
    """Also none fewer: one that was there before is called still, once."""
    micro = Micro(CPUID, engine=engine)
    calls = []

    def hook(exit: Exit) -> None:
        calls.append(exit.reason)

    with pytest.raises(InputError):
        micro.machine.on_exit(*names)(hook)
    assert not micro.machine.hooks.wanted(find_reasons(left)[0].number, 1)
    micro.machine.on_exit("cpuid")(hook)
    with pytest.raises(InputError):
        micro.machine.on_exit(*names)(hook)
    micro.run()
    assert calls == ["cpuid"] * 200


def test_a_method_can_be_removed() -> None:
    """A bound method is another object each time it is named."""
    class Watcher:
        def __init__(self) -> None:
            self.calls = 0

        def see(self, exit: Exit) -> None:
            self.calls += 1

    micro = Micro(CPUID)
    watcher = Watcher()
    micro.machine.on_exit("cpuid")(watcher.see)
    micro.machine.hooks.remove(watcher.see)
    micro.run()
    assert watcher.calls == 0
