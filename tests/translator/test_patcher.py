# SPDX-License-Identifier: GPL-2.0-or-later
"""The patcher: what it takes for code, what it replaces, what it refuses, and hostile files.

That patched kernels still work is in tests/engines/test_patched.py.
"""

from __future__ import annotations

import random
import shutil
import struct
import subprocess

import pytest

import guests
from translator import pvabi
from translator.image import ImageError, KernelImage
from translator.patcher import PatchError, patch
from translator.rewriter import TRAP

BASE = 0x100000


def elf(code: bytes, bits: int = 64, *, kind: int = 2, entry: int = BASE, vaddr: int = BASE,
        symbols: tuple[tuple[str, int, int, int], ...] = (), extra: tuple[int, ...] = (),
        machine: int | None = None) -> bytes:
    """An ELF file with ``code`` at physical 1 MiB. ``symbols``: (name, value, size, type);
    ``extra``: types of further, empty program headers."""
    wide = bits == 64
    header, phdr, shdr = (64, 56, 64) if wide else (52, 32, 40)
    at = header + phdr * (1 + len(extra))
    heads = b""
    for kind_of in (1, *extra):
        size = len(code) if kind_of == 1 else 0
        if wide:
            heads += struct.pack("<IIQQQQQQ", kind_of, 5, at, vaddr, BASE, size, size, 1)
        else:
            heads += struct.pack("<8I", kind_of, at, vaddr, BASE, size, size, 5, 1)
    body = code
    names, table = b"\0", bytes(24 if wide else 16)
    for name, value, size, type_ in symbols:
        info = 0x10 | type_
        table += struct.pack("<IBBHQQ", len(names), info, 0, 1, value, size) if wide else \
            struct.pack("<IIIBBH", len(names), value, size, info, 0, 1)
        names += name.encode() + b"\0"
    sections = b""
    count = 0
    if symbols:
        rows = [(0, 0, 0, 0, 0, 0), (1, 6, vaddr, at, len(code), 0),
                (2, 0, 0, at + len(code), len(table), 3),
                (3, 0, 0, at + len(code) + len(table), len(names), 0)]
        count = len(rows)
        for type_, flags, address, offset, size, link in rows:
            sections += struct.pack("<IIQQQQIIQQ" if wide else "<10I", 0, type_, flags, address,
                                    offset, size, link, int(type_ == 2), 1,
                                    (24 if wide else 16) if type_ == 2 else 0)
        body += table + names
    shoff = at + len(body) if symbols else 0
    head = b"\x7fELF" + bytes([bits // 32, 1, 1]) + bytes(9) + struct.pack(
        "<HHIQQQIHHHHHH" if wide else "<HHIIIIIHHHHHH", kind,
        machine or (62 if wide else 3), 1, entry, header, shoff, 0, header, phdr,
        1 + len(extra), shdr, count, count - 1 if count else 0)
    return head + heads + body + sections


def code_of(image: bytes, length: int) -> bytes:
    return KernelImage(image).read(BASE, length)


# -- in place --------------------------------------------------------------------------------------


def test_room_makes_a_stub():
    code = bytes.fromhex("fa 90 90 90 90 f4 ebfd")      # cli; nops; hlt; jmp -> hlt
    out, report = patch(elf(code))
    assert [(s.row, s.how) for s in report.sites] == [("CLI", "inline"), ("HLT", "trap")]
    patched = code_of(out, 8)
    target = BASE + 5 + struct.unpack("<i", patched[1:5])[0]
    assert patched[0] == 0xE9 and patched[5] == TRAP and patched[6:] == code[6:]
    assert target & (1 << 64) - 1 == pvabi.WINDOW + pvabi.STUBS_OFFSET


@pytest.mark.parametrize(("code", "why"), [
    ("fa 90 90 ebfc", "a jump to the NOP behind it"),
    ("fa 488b07 90 90 ebfe", "a load may fault in a stub"),
    ("fa 48890d00000000 ebfe", "RIP-relative"),
    ("fa fb fa fb fa ebfe", "each followed by another"),
    ("fa ff20", "an indirect jump"),
    ("fa c3", "too short even with the RET"),
])
def test_no_room_makes_a_trap(code, why):
    raw = bytes.fromhex(code)
    out, report = patch(elf(raw))
    assert report.sites[0].how == "trap", why
    assert code_of(out, 1)[0] == TRAP
    assert code_of(out, len(raw))[1:3] == (raw[1:3] if raw[1] != 0xFB else bytes([TRAP, TRAP]))


def test_a_symbol_behind_makes_a_trap():
    code = bytes.fromhex("fa 90 90 90 90 ebfe")
    symbols = (("start", BASE, 0, 0), ("inside", BASE + 2, 0, 0))
    assert patch(elf(code, symbols=symbols))[1].sites[0].how == "trap"
    assert patch(elf(code, symbols=symbols[:1]))[1].sites[0].how == "inline"


def test_traps_only():
    out, report = patch(elf(bytes.fromhex("fa 90 90 90 90 ebfe")), stubs=False)
    assert report.counts == {"inline": 0, "hypercall": 0, "trap": 1, "left": 0}
    assert report.stub_bytes == 0
    assert not any(s.kind == pvabi.PT_STUBS for s in KernelImage(out).segments)


def test_code_that_may_run_elsewhere_gets_traps_only():
    """The entry of a kernel that is linked high: its first code runs at the physical address."""
    code = bytes.fromhex("fa 90 90 90 90 ebfe")
    high = 0xFFFFFFFF80100000
    _, report = patch(elf(code, entry=BASE, vaddr=high))
    assert (report.sites[0].address, report.sites[0].how) == (high, "trap")


def test_software_interrupts_are_left():
    _, report = patch(elf(bytes.fromhex("cd80 fa ebfe")))
    assert [(s.row, s.how, bool(s.why)) for s in report.sites] == [
        ("INT_N", "left", True), ("CLI", "trap", False)]


def test_the_trap_table():
    code = bytes.fromhex("0f22d8 ebfe")                 # mov cr3, rax; jmp $
    notes = KernelImage(patch(elf(code), stubs=False)[0]).notes()
    assert struct.unpack("<IIQQ", notes[pvabi.NOTE_INTERFACE]) == (1, 0, 0, 0)
    assert list(pvabi.unpack_traps(notes[pvabi.NOTE_TRAPS])) == [
        pvabi.Trap(BASE, BASE, BASE + 3, 64, code[:3])]


# -- what is code --------------------------------------------------------------------------------

#: hlt; jmp $; then at +3 a function nobody calls: cli; ret; then at +5 out 0x80, al; ret
LONELY = bytes.fromhex("f4 ebfd fa c3 e680 c3 90 90")


def rows(image: bytes) -> list[str]:
    return [site.row for site in patch(image)[1].sites]


def test_symbols_lead_to_functions():
    function = ("f", BASE + 3, 2, 2)
    assert rows(elf(LONELY, symbols=(function,))) == ["HLT", "CLI"]
    with pytest.raises(PatchError, match="is no kernel"):
        patch(elf(LONELY))
    with pytest.raises(PatchError, match="is no kernel"):      # a label that nothing refers to
        patch(elf(LONELY, symbols=(("f", BASE + 3, 2, 0),)))


def test_a_function_s_size_is_swept():
    assert rows(elf(LONELY, symbols=(("f", BASE + 3, 5, 2),))) == ["HLT", "CLI", "OUT"]


def test_labels_that_code_names_are_followed_unless_they_are_text():
    def image(tail: bytes) -> bytes:
        # cli; lea rsi, [rip+2]; jmp $; the label
        return elf(bytes.fromhex("fa 488d3502000000 ebfe") + tail,
                   symbols=(("label", BASE + 10, 0, 0),))
    assert rows(image(b"\xfb\xc3")) == ["CLI", "STI"]
    assert rows(image(b"mnopqr\0")) == ["CLI"]          # ins and outs, if it were code


def test_a_far_jump_changes_the_code_size():
    """32-bit entry, LGDT of a table with a 64-bit segment, jmp 8:wide."""
    wide = BASE + 14
    code = b"\x0f\x01\x15" + struct.pack("<I", BASE + 24) + b"\xea" + struct.pack("<IH", wide, 8)
    code += bytes.fromhex("0f01f8 ebfe 90 90 90 90 90")
    code += struct.pack("<HQ", 15, BASE + 40).ljust(16, b"\0")
    code += struct.pack("<QQ", 0, 0x00AF9B000000FFFF)
    _, report = patch(elf(code, 32))
    assert [(s.row, s.bits) for s in report.sites] == [
        ("LGDT", 32), ("FAR_JMP", 32), ("SWAPGS", 64)]


def test_a_multiboot_header_is_not_code():
    image = guests.image("tasks").read_bytes()
    out, report = patch(image)
    at = image.index(struct.pack("<I", 0x1BADB002))
    assert out[at:at + 12] == image[at:at + 12]
    assert not report.stripped and report.counts["trap"]
    assert {site.bits for site in report.sites} == {32, 64}


def test_user_code_is_left_alone():
    """Task D executes a CLI that must stay one."""
    image = guests.image("tasks").read_bytes()
    before, after = KernelImage(image), KernelImage(patch(image)[0])
    writable = [s for s in before.loads if not s.flags & 1]
    assert writable
    for s in writable:
        assert before.read(s.vaddr, s.filesz) == after.read(s.vaddr, s.filesz)


# -- the file --------------------------------------------------------------------------------------


@pytest.mark.skipif(shutil.which("readelf") is None, reason="binutils are not installed")
@pytest.mark.parametrize("bits", [32, 64])
@pytest.mark.parametrize("symbols", [(), (("start", BASE, 0, 0),)], ids=["stripped", "symbols"])
def test_readelf_accepts_it(tmp_path, bits, symbols):
    path = tmp_path / "out"
    path.write_bytes(patch(elf(bytes.fromhex("fa 90 90 90 90 f4 ebfd"), bits, symbols=symbols))[0])
    done = subprocess.run(["readelf", "-aW", path], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert "Ring1" in done.stdout
    assert ("note.ring1" in done.stdout) == bool(symbols)


@pytest.mark.skipif(shutil.which("readelf") is None, reason="binutils are not installed")
def test_readelf_accepts_tasks(tmp_path):
    path = tmp_path / "out"
    path.write_bytes(patch(guests.image("tasks").read_bytes())[0])
    done = subprocess.run(["readelf", "-aW", path], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert ".ring1.stubs" in done.stdout and "all_done" in done.stdout


def test_only_what_was_reported_changes():
    image = guests.image("hello").read_bytes()
    out, report = patch(image)
    changed = [i for i in range(64, len(image)) if out[i] != image[i]]
    read = KernelImage(image)
    allowed = {at + i for site in report.sites if (at := read.offset(site.address)) is not None
               for i in range(20)}
    assert changed and set(changed) <= allowed


# -- what is refused -----------------------------------------------------------------------------

GOOD = bytes.fromhex("fa ebfe")


@pytest.mark.parametrize(("image", "message"), [
    (b"", "is not an ELF file"),
    (b"MZ" + bytes(100), "is not an ELF file"),
    (b"\x7fELF", "cut short"),
    (elf(GOOD)[:100], "cut short"),
    (elf(GOOD)[:-1], "cut short"),
    (elf(GOOD, kind=1), "object file"),
    (elf(GOOD, kind=3), "shared object"),
    (elf(GOOD, kind=4), "type 4"),
    (elf(GOOD, extra=(3,)), "program for an operating system"),
    (elf(GOOD, extra=(7,)), "program for an operating system"),
    (elf(GOOD, machine=183), "not an ELF file for x86"),
    (elf(GOOD, 32, machine=62), "not an ELF file for x86"),
    (elf(GOOD, entry=0x50), "entry point 0x50"),
    (elf(b"\x90\xeb\xfe"), "is no kernel"),
    (elf(b"\x0f\x05\xf4\xeb\xfd"), "is no kernel"),
], ids=lambda value: value if isinstance(value, str) else "")
def test_refused_with_one_line(image, message):
    with pytest.raises(ImageError, match=message) as caught:
        patch(image)
    assert "\n" not in str(caught.value)


def test_twice_is_refused():
    out, _ = patch(elf(GOOD))
    with pytest.raises(PatchError, match="is patched already"):
        patch(out)
    with pytest.raises(PatchError, match="is paravirtual already"):
        patch(guests.image("tasks-pv").read_bytes())


# -- damaged files -------------------------------------------------------------------------------


def damaged(rng: random.Random, image: bytes) -> bytes:
    data = bytearray(image)
    for _ in range(rng.choice((1, 1, 2, 8))):
        where = rng.random()
        at = rng.randrange(64) if where < 0.4 else rng.randrange(len(data))
        if where > 0.9:
            at = rng.randrange(max(0, len(data) - 400), len(data))
        size = rng.choice((1, 2, 4, 8))
        value = rng.choice((0, 1, 0x7F, 0xFF, 1 << 31, (1 << 32) - 1, 1 << 63, (1 << 64) - 1,
                            rng.getrandbits(64), len(data), rng.randrange(len(data))))
        data[at:at + size] = value.to_bytes(8, "little")[:size]
    if rng.random() < 0.2:
        del data[rng.randrange(len(data)):]
    return bytes(data)


def test_damaged_files_give_one_line_or_a_kernel():
    rng = random.Random(20061)
    symbols = (("f", BASE + 3, 5, 2), ("g", BASE + 1, 0, 0))
    small = [elf(LONELY * 3, bits, symbols=symbols) for bits in (32, 64)]
    small += [patch(image)[0] for image in small]
    patched = refused = 0
    for i in range(2000):
        image = damaged(rng, small[i % 4])
        try:
            out, report = patch(image)
        except ImageError as error:
            assert "\n" not in str(error)
            refused += 1
        else:
            assert out[:4] == b"\x7fELF" and KernelImage(out).notes()
            patched += 1
    assert patched > 100 and refused > 500


def test_every_cut_of_a_file_is_refused_or_patched():
    image = elf(LONELY, symbols=(("f", BASE + 3, 5, 2),))
    for length in range(len(image)):
        try:
            patch(image[:length])
        except ImageError:
            continue
        pytest.fail(f"the first {length} of {len(image)} bytes were taken")
