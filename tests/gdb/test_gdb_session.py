# SPDX-License-Identifier: GPL-2.0-or-later
"""Requests and answers, on a guest of a few instructions; and every request there could be."""

from __future__ import annotations

import xml.etree.ElementTree as ElementTree

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from micro import Micro

from bt.gdb.session import Resume, Segment, Session
from bt.gdb.target import I386, X86_64

SOURCE = """
    mov eax, 0x11223344
    nop
here:
    mov ebx, 2
    EXIT 3
"""


def session(bits: int = 64) -> tuple[Session, Micro]:
    micro = Micro(SOURCE, bits=bits)
    micro.enter()
    micro.machine.breakpoint(micro.symbol("here")).remove()
    stop = micro.machine.breakpoint(micro.symbol("here"))
    assert micro.machine.run(timeout=20).kind == "breakpoint"
    stop.remove()
    return Session(micro.machine), micro


@pytest.mark.parametrize("bits", [32, 64])
def test_registers(bits: int) -> None:
    talk, micro = session(bits)
    registers = X86_64 if bits == 64 else I386
    everything = talk.answer(b"g")
    assert len(everything) == sum(r.bits for r in registers) // 4
    assert everything.startswith(b"44332211")
    names = [r.name for r in registers]
    rip = names.index("rip" if bits == 64 else "eip")
    assert int.from_bytes(bytes.fromhex(talk.answer(b"p%x" % rip).decode()), "little") == \
        micro.symbol("here")
    assert set(talk.answer(b"p%x" % names.index("st0"))) == set(b"x")
    assert talk.answer(b"P0=78563412" + b"00000000" * (bits == 64)) == b"OK"
    assert micro.machine.registers["eax"] == 0x12345678
    assert talk.answer(b"G" + everything) == b"OK"
    assert micro.machine.registers["eax"] == 0x11223344
    assert talk.answer(b"pffff") == b"E16"


@pytest.mark.parametrize("bits", [32, 64])
def test_the_description_is_xml_that_names_each_register(bits: int) -> None:
    talk, _ = session(bits)
    text, offset = b"", 0
    while True:
        piece = talk.answer(b"qXfer:features:read:target.xml:%x,100" % offset)
        text, offset = text + piece[1:], offset + len(piece) - 1
        if piece[:1] == b"l":
            break
    tree = ElementTree.fromstring(text.decode().replace(
        '<!DOCTYPE target SYSTEM "gdb-target.dtd">', ""))
    assert [reg.get("name") for reg in tree.iter("reg")] == \
        [r.name for r in (X86_64 if bits == 64 else I386)]
    assert tree.find("architecture").text == ("i386:x86-64" if bits == 64 else "i386")


def test_memory() -> None:
    talk, micro = session()
    at = micro.symbol("start")
    assert talk.answer(b"m%x,5" % at) == b"b844332211"
    assert talk.answer(b"M%x,1:90" % (at + 5)) == b"OK"
    assert talk.answer(b"X%x,2:\x90\xcc" % (at + 4)) == b"OK"
    assert talk.answer(b"m%x,2" % (at + 4)) == b"90cc"
    assert talk.answer(b"mffff800000000000,4") == b"E0e"
    assert talk.answer(b"mffffffffffffffff,4") == b"E0e"
    assert talk.answer(b"Mffff800000000000,1:00") == b"E0e"
    assert talk.answer(b"M%x,2:00" % at) == b"E16"
    # Over the end of what is mapped: as much as there is.
    assert len(talk.answer(b"m7ffff8,20")) == 16


def test_memory_of_the_kernel_before_it_is_mapped() -> None:
    _, micro = session()
    talk = Session(micro.machine, [Segment(0xFFFF_FFFF_8100_0000, micro.symbol("start"), 16)])
    assert talk.answer(b"mffffffff81000000,5") == b"b844332211"
    assert talk.answer(b"mffffffff8100000e,5") == b"E0e"


def test_breakpoints_and_running() -> None:
    talk, micro = session()
    exit_at = micro.symbol("here") + 5
    assert talk.answer(b"Z0,%x,1" % exit_at) == b"OK"
    assert talk.answer(b"Z0,%x,1" % exit_at) == b"OK"
    assert talk.answer(b"m%x,1" % exit_at) == b"b0", "the guest's own byte"
    assert talk.answer(b"Z2,%x,4" % exit_at) == b""
    assert talk.answer(b"c") is None and talk.resume == Resume()
    assert micro.machine.run(timeout=20).kind == "breakpoint"
    assert talk.hit() == b"T05swbreak:;thread:1;"
    assert talk.answer(b"?") == b"T05swbreak:;thread:1;"
    assert talk.answer(b"z0,%x,1" % exit_at) == b"OK"
    assert talk.answer(b"z0,%x,1" % exit_at) == b"OK"
    assert talk.answer(b"vCont;s:1;c") is None and talk.resume == Resume(step=True)
    assert talk.answer(b"s%x" % micro.symbol("here")) is None
    assert micro.machine.registers["rip"] == micro.symbol("here")
    assert talk.answer(b"D") == b"OK" and talk.resume == Resume(detach=True)
    assert talk.answer(b"k") is None and talk.resume == Resume(kill=True)
    assert talk.ended(micro.machine.run(timeout=20)) == b"W03"


def test_monitor_commands_and_what_is_not_known() -> None:
    talk, _ = session()
    for command, wanted in (("regs", "rip"), ("exits", "control"), ("info", "engine bt"),
                            ("nonsense", "monitor regs"), ("", "monitor regs")):
        reply = talk.answer(b"qRcmd," + command.encode().hex().encode())
        assert wanted in bytes.fromhex(reply.decode()).decode()
    assert talk.answer(b"vMustReplyEmpty") == b""
    assert talk.answer(b"qSupported:multiprocess+").startswith(b"PacketSize=")
    assert talk.answer(b"qXfer:features:read:other.xml:0,10") == b"E00"


_TALK, _MICRO = None, None


@given(st.one_of(st.binary(max_size=40), st.builds(
    lambda head, tail: head + tail,
    st.sampled_from([b"g", b"G", b"p", b"P", b"m", b"M", b"X", b"Z0,", b"z1,", b"vCont", b"qRcmd,",
                     b"qXfer:features:read:target.xml:", b"c", b"s", b"C", b"H"]),
    st.text("0123456789abcdefxX,:;=-", max_size=24).map(str.encode))))
@settings(max_examples=500, deadline=None,
          suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_request_is_answered(request_: bytes) -> None:
    """gdb's side may be anybody: an answer, never an exception."""
    global _TALK, _MICRO
    if _TALK is None:
        _TALK, _MICRO = session()
    reply = _TALK.answer(request_)
    assert reply is None or isinstance(reply, bytes)
    assert (reply is None) <= (_TALK.resume is not None)
