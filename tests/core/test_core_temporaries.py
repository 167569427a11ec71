# SPDX-License-Identifier: GPL-2.0-or-later
"""No straight line of instructions overflows Unicorn's translator (bt/core/temporaries.pxi).

The guests run in a process of their own, which is what an overflow would end.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent
ENGINES = ("bt", "trap", "pv", "hvm")
COUNT = 600

#: Calls the line with SSE on (CR4.OSFXSR).
CALL = ("mov {acc}, cr4\\n or eax, 0x200\\n mov cr4, {acc}\\n mov eax, 0x180000\\n call {acc}\\n"
        "EXIT 1")

KERNEL = """
from micro import Micro
micro = Micro("{source}", {bits}, engine="{engine}")
micro.ram.write(0x180000, bytes.fromhex("{code}") * {count} + b"\\xc3")
outcome = micro.run().outcome
assert (outcome.kind, outcome.status) == ("powered-off", 1), outcome
"""

#: User mode runs the line, then UD2, whose handler ends the run with status 0x7f.
USER = """
from micro import Micro
micro = Micro('''
    push UDATA
    push USER_STACK
    pushfq
    push UCODE
    mov eax, 0x180000
    push rax
    iretq
''', 64, engine="{engine}")
for page in (0x180000, 0x181000):
    micro.user_page(page)
micro.ram.write(0x180000, bytes.fromhex("{code}") * {count} + b"\\x0f\\x0b")
done = micro.run()
outcome = done.outcome
assert (outcome.kind, outcome.status) == ("powered-off", 0x7F), outcome
assert [(r.vector, r.ip) for r in done.records] == [(6, 0x180000 + {count} * {length})]
"""

#: Lines of random instructions that leave temporaries behind: x87 of registers, SSE and integer.
DENSE = """
import random
from micro import Micro
X87 = {{0xD8: range(0xC0, 0x100), 0xD9: range(0xC0, 0xD0), 0xDA: range(0xC0, 0xE0),
       0xDB: range(0xC0, 0xE0), 0xDC: range(0xC0, 0x100), 0xDD: range(0xC0, 0xC8),
       0xDE: range(0xC0, 0xD0), 0xDF: range(0xE8, 0xF8)}}
SSE = [bytes.fromhex(code) for code in (
    "0fc6", "660fc6", "660f70", "f20f70", "f30f70", "660f3a0f", "660f3a08", "660f3a63")]
for seed in range({first}, {first} + {seeds}):
    rng = random.Random(seed)
    bits = rng.choice((32, 64))
    line = bytearray()
    share = rng.random()
    while len(line) < 3000:
        if rng.random() < share:
            opcode = rng.choice(list(X87))
            line += bytes((opcode, rng.choice(X87[opcode])))
        elif rng.random() < 0.8:
            line += rng.choice(SSE) + bytes((0xC0 | rng.randrange(64), rng.randrange(256)))
        else:
            line += rng.choice((b"\\xf2\\x0f\\x38\\xf1\\xc9", b"\\x0f\\xa4\\xca\\x01",
                                b"\\x90", b"\\x01\\xca"))
    acc = "rax" if bits == 64 else "eax"
    micro = Micro("{source}".format(acc=acc), bits, engine=rng.choice(("bt", "trap", "hvm")))
    micro.ram.write(0x180000, bytes(line) + b"\\xc3")
    outcome = micro.run().outcome
    assert (outcome.kind, outcome.status) == ("powered-off", 1), (seed, outcome)
"""


def run(text: str, timeout: float = 60) -> None:
    environment = dict(os.environ, PYTHONPATH=f"{HERE.parents[1]}:{HERE}")
    done = subprocess.run([sys.executable, "-c", text], capture_output=True, timeout=timeout,
                          env=environment)
    assert done.returncode == 0, done.stderr[-800:].decode()


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize(("bits", "code"), [(32, "ce"), (64, "d9c0"), (64, "f20f38f1c0"),
                                            (64, "0fc6c000")])
def test_long_lines_in_the_kernel(bits: int, code: str, engine: str) -> None:
    """INTO, FLD ST0, CRC32, SHUFPS: 600 in a row."""
    run(KERNEL.format(bits=bits, code=code, engine=engine, count=COUNT,
                      source=CALL.format(acc="rax" if bits == 64 else "eax")))


@pytest.mark.parametrize("engine", ("bt", "trap", "hvm"))
@pytest.mark.parametrize("code", ["d9c0", "f20f38f1c0"])
def test_long_lines_in_user_mode(code: str, engine: str) -> None:
    run(USER.format(code=code, engine=engine, count=COUNT, length=len(code) // 2))


#: LOCK with BT, BTS with REX, BTR imm8 behind 66, BTC: of registers, where they are #UD.
LOCKED = [(64, "f00fa3c0"), (64, "f0480fabc8"), (64, "66f00fbaf001"), (32, "f00fbbc0"),
          (32, "2ef00fbae0ff")]


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize(("bits", "code"), LOCKED)
def test_locked_bit_test_of_a_register(bits: int, code: str, engine: str) -> None:
    """Unicorn alone aborts. First in its block, and behind an instruction with an address."""
    for before in ("", "8d06"):         # LEA
        text = KERNEL.format(bits=bits, code=before + code, engine=engine, count=1,
                             source=CALL.format(acc="rax" if bits == 64 else "eax"))
        run(text.replace('("powered-off", 1)', '("powered-off", 0x7F)'))


@pytest.mark.parametrize("engine", ("bt", "trap", "hvm"))
def test_locked_bit_test_in_user_mode(engine: str) -> None:
    text = USER.format(code="f00fa3c0", engine=engine, count=1, length=0)
    run(text)


@pytest.mark.parametrize("code", ["f00fab06", "f00fba2e01", "0fa3c0", "0fbae001"])
def test_bit_tests_that_are_none_of_these(code: str) -> None:
    """LOCK BTS of memory, and BT of a register without LOCK."""
    run(KERNEL.format(bits=64, code="be00201800" + code, engine="bt", count=1,
                      source=CALL.format(acc="rax")))


def test_random_dense_lines() -> None:
    run(DENSE.format(source=CALL, first=0, seeds=40), 120)


@pytest.mark.slow
def test_more_random_dense_lines() -> None:
    run(DENSE.format(source=CALL, first=1000, seeds=600), 900)
