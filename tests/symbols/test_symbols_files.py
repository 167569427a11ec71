# SPDX-License-Identifier: GPL-2.0-or-later
"""Symbols of files: ELF against nm(1), System.map, and damaged ones of both."""

from __future__ import annotations

import random
import shutil
import subprocess

import pytest

from bt.boot.image import BytesImage
from bt.errors import InputError
from bt.symbols import elf, of_file, systemmap

SOURCE = """
static int hidden(int x) { return x + 1; }
int shown(int x) { return hidden(x) * 2; }
__attribute__((weak)) int feeble(void) { return 3; }
int data = 5; static int more = 6; int nothing[100]; const int fixed = 7;
int main(void) { return shown(data) + more + nothing[3] + feeble() + fixed; }
"""


@pytest.fixture(scope="module", params=["-m64", "-m32 -ffreestanding", "-m64 -c", "-m64 -no-pie"])
def compiled(request, tmp_path_factory):
    """A compiled program or object file. gcc is what the package itself is built with."""
    folder = tmp_path_factory.mktemp("elf")
    (folder / "a.c").write_text(SOURCE)
    if shutil.which("gcc") is None or shutil.which("nm") is None:
        pytest.skip("needs gcc and nm")
    flags = request.param.split()
    if "-m32" in flags:
        flags += ["-nostdlib", "-Wl,-e,main", "-fno-pie", "-no-pie"]
    subprocess.run(["gcc", "-O0", *flags, "-o", "a.out", "a.c"], cwd=folder, check=True)
    return folder / "a.out"


def test_as_nm_says(compiled) -> None:
    listed = subprocess.run(["nm", "--defined-only", compiled], capture_output=True, text=True,
                            check=True).stdout.split("\n")
    want = {(int(line.split()[0], 16), line.split()[1], line.split()[2])
            for line in listed if line}
    from bt.boot.image import FileImage
    with FileImage(compiled) as image:
        file = elf.ElfFile(image)
        got = {(f.symbol.address, f.symbol.kind, f.symbol.name) for f in file.symbols}
    assert {(a, n) for a, _, n in got} == {(a, n) for a, _, n in want}
    # Letters differ where nm goes by section names; code and data it tells as we do.
    for letter in "tTdDbBW":
        assert {row for row in want if row[1] == letter} == \
            {row for row in got if row[1] == letter}, letter


def test_functions_are_found_by_address(compiled) -> None:
    table = of_file(compiled)
    if not table:           # an object file: its sections all begin at 0
        return
    at = table.address("shown")
    assert table.lookup(at + 3) == ("shown", 3)
    size = table.named("shown").size
    assert size and table.lookup(at + size) != ("shown", size)
    assert table.section(at) == ".text"


def test_damaged_elf_files(compiled) -> None:
    good = compiled.read_bytes()
    rng = random.Random(str(compiled.stat().st_size))
    for _ in range(500):
        data = bytearray(good)
        for _ in range(rng.choice((1, 3, 30))):
            # Headers more often than contents.
            at = rng.choice((rng.randrange(64), rng.randrange(len(data)),
                             len(data) - 1 - rng.randrange(2000)))
            data[at] = rng.randrange(256)
        data = data[:rng.choice((len(data), rng.randrange(len(data))))]
        try:
            file = elf.ElfFile(BytesImage("damaged", bytes(data)))
            file.symbol_table().lookup(0x1000)
        except InputError as error:
            assert "\n" not in str(error)


def test_system_map(tmp_path) -> None:
    path = tmp_path / "System.map"
    path.write_text("0000000000000000 A __per_cpu_start\nffffffff81000000 T _text\n"
                    "ffffffff81000000 T startup_64\nffffffff81000100 t inner\t[module]\n")
    table = of_file(path)
    assert table.describe(0xFFFFFFFF81000104) == "inner+0x4"
    assert table.describe(0xFFFFFFFF81000004) == "_text+0x4"
    assert table.lookup(8) is None


@pytest.mark.parametrize(("text", "words"), [
    ("ffffffffffffffff B The real System.map is in the linux-image-<version>-dbg package\n",
     "-dbg package"),
    ("ffffffff81000000 T _text\nnonsense\n", "line 2"),
    ("0000000000000000 T _text\n0000000000000000 T other\n", "root"),
])
def test_useless_system_maps(tmp_path, text, words) -> None:
    path = tmp_path / "System.map"
    path.write_text(text)
    with pytest.raises(InputError, match=words):
        of_file(path)


def test_files_without_symbols(tmp_path) -> None:
    path = tmp_path / "x"
    for data in (b"", b"\xff\xd8\xff\xe0JFIF", b"\x7fELF", bytes(5000)):
        path.write_bytes(data)
        with pytest.raises(InputError):
            of_file(path)


def test_damaged_system_maps() -> None:
    good = b"".join(b"%016x T name_%d\n" % (0xFFFFFFFF81000000 + 16 * n, n) for n in range(200))
    rng = random.Random(1)
    for _ in range(300):
        data = bytearray(good)
        for _ in range(rng.choice((1, 5))):
            data[rng.randrange(len(data))] = rng.randrange(256)
        try:
            systemmap.read(BytesImage("damaged", bytes(data)))
        except InputError as error:
            assert "\n" not in str(error)
