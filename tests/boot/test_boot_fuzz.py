# SPDX-License-Identifier: GPL-2.0-or-later
"""2,000 damaged files for each loader: a valid guest or one line of InputError, nothing else.

The cases come from fixed seeds, so a failure repeats; its message gives the seed.
"""

import random
import resource
import struct

import pytest
from bootimages import MB, METHODS, bzimage, cpio, elf, multiboot_header, pack, segment

from bt.boot import Loaded, load
from bt.errors import InputError
from bt.machine.ram import Ram

CASES = 2000
RAM_SIZE = 4 * MB
MEMORY_GROWTH_MB = 250      # xz and zstd may allocate a window of 128 MB, as real kernels ask for

CODE = bytes(range(256)) * 4
VMLINUX = elf([segment(MB, CODE), segment(2 * MB, CODE, memsz=8192), segment(3 * MB, b"x" * 99)])
VMLINUX32 = elf([segment(MB, CODE), segment(2 * MB, CODE, memsz=8192)], bits=32)
HEADER = multiboot_header(1 << 16, (MB + 0x20, MB, MB + 0x80, MB + 0x1000, MB + 0x40))
DISK = cpio(("init", CODE), ("etc/passwd", b"root::0:0:::\n"))

# For each: the files to damage, and how many of their first bytes to aim at.
SUBJECTS = {
    "bzImage": ([bzimage(pack(VMLINUX, method)) for method in METHODS], 0x270),
    "payload": ([bzimage(pack(VMLINUX, method)) for method in METHODS], 1 << 20),
    "ELF": ([VMLINUX, VMLINUX32], 250),
    "multiboot ELF": ([elf([segment(MB, multiboot_header(3) + CODE)], bits=bits)
                       for bits in (32, 64)], 150),
    "multiboot addresses": ([bytes(0x20) + HEADER + CODE], 0x20 + len(HEADER)),
}
NUMBERS = (0, 1, 0x7F, 0x80, 0xFF, 0xFFFF, 0x10000, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF,
           (1 << 63) - 1, 1 << 63, (1 << 64) - 1, RAM_SIZE, MB)


def damaged(rng: random.Random, data: bytes, aim: int) -> bytes:
    """One of: bits flipped, numbers replaced, the end cut off, random bytes after a good start."""
    out = bytearray(data)
    kind = rng.randrange(5)
    aim = min(aim, len(out))
    if kind == 0:
        return bytes(out[:rng.randrange(len(out))])
    if kind == 1:
        keep = rng.choice((0, 4, 16, 64, aim, len(out) - 1))
        return bytes(out[:keep]) + rng.randbytes(rng.randrange(1, 3000))
    for _ in range(rng.choice((1, 1, 2, 8))):
        at = rng.randrange(aim)
        if kind == 2:
            out[at] ^= 1 << rng.randrange(8)
        elif kind == 3:
            out[at] = rng.randrange(256)
        else:
            size = rng.choice((1, 2, 4, 8))
            at -= at % size
            number = rng.choice(NUMBERS) & (1 << 8 * size) - 1
            out[at:at + size] = number.to_bytes(size, "little")
    return bytes(out)


def check(loaded: Loaded, ram: Ram) -> None:
    """What the vCPU starts with must lie in RAM."""
    entry = loaded.entry
    assert entry.bits in (16, 32, 64)
    assert 0 <= entry.rip < ram.size and 0 <= entry.rsp <= ram.size
    assert loaded.description.isprintable()
    if entry.bits > 16:
        assert entry.gdt_base + entry.gdt_limit < MB and entry.rip >= MB
    assert (entry.bits == 64) == bool(entry.cr3)


def peak_mb() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10


def attempt(seed: str, path, **options) -> bool:
    """True if it was loaded, False if it was refused properly."""
    ram = Ram(RAM_SIZE)
    try:
        loaded = load(path, ram, **options)
    except InputError as err:
        text = str(err)
        assert "\n" not in text and len(text) < 400 and text.isprintable(), seed
        return False
    except Exception as err:
        raise AssertionError(f"case {seed}: {err!r}") from err
    check(loaded, ram)
    return True


def test_flat_binaries_anywhere(kernel):
    path = kernel(CODE)
    rng = random.Random("flat")
    loaded = 0
    for number in range(CASES):
        bits = rng.choice((16, 32, 64))
        base = rng.choice((*NUMBERS, -1, rng.randrange(RAM_SIZE))) + rng.randrange(-2, 3)
        try:
            entry = load(path, Ram(RAM_SIZE), kind="flat", bits=bits, base=base).entry
        except InputError:
            continue
        loaded += 1
        where = entry.cs * 16 + entry.rip if bits == 16 else entry.rip
        assert where == base and 0 <= base <= RAM_SIZE - len(CODE), number
    assert 0 < loaded < CASES


@pytest.mark.parametrize("name", SUBJECTS)
def test_damaged_kernels(kernel, name):
    files, aim = SUBJECTS[name]
    before = peak_mb()
    loaded = 0
    for number in range(CASES):
        seed = f"{name}-{number}"
        rng = random.Random(seed)
        loaded += attempt(seed, kernel(damaged(rng, rng.choice(files), aim)))
    assert peak_mb() - before < MEMORY_GROWTH_MB
    assert loaded > CASES // 100        # the damage is small enough to get past the first check
    assert loaded < CASES


def test_damaged_pvh_kernels(kernel):
    notes = struct.pack("<III4sI", 4, 4, 18, b"Xen", MB + 0x40) * 3
    image = elf([segment(MB, CODE), segment(MB, notes, kind=4)])
    files = [image, bzimage(pack(image, "lz4"))]
    loaded = 0
    for number in range(CASES):
        rng = random.Random(f"pvh-{number}")
        data = damaged(rng, rng.choice(files), 1 << 20)
        loaded += attempt(f"pvh-{number}", kernel(data), kind="pvh")
    assert CASES // 100 < loaded < CASES


def test_damaged_initrds(kernel):
    path = kernel(VMLINUX)
    loaded = sum(attempt(f"initrd-{number}", path,
                         initrd=damaged(random.Random(f"initrd-{number}"), DISK, 1 << 20))
                 for number in range(CASES))
    assert 0 < loaded < CASES


def test_every_truncation_of_an_elf_kernel(kernel):
    for length in range(len(VMLINUX)):
        assert not attempt(f"length {length}", kernel(VMLINUX[:length]))


def test_sparse_files_of_huge_size(tmp_path):
    """A file of 1 TiB costs no memory, whatever it claims to be."""
    for start in (b"", VMLINUX, bzimage(pack(VMLINUX, "xz"), init_size=MB), HEADER):
        path = tmp_path / "huge"
        path.write_bytes(start)
        with path.open("r+b") as file:
            file.truncate(1 << 40)
        attempt("huge", path)
        attempt("huge", path, kind="flat")
        with pytest.raises(InputError, match="needs at least .* for .*huge"):
            load(tmp_path / "ok" if (tmp_path / "ok").write_bytes(VMLINUX) else path,
                 Ram(RAM_SIZE), initrd=path)


def test_many_overlapping_segments_cost_no_time(kernel):
    """65,535 segments of the whole file each would be 65,535 copies."""
    image = bytearray(elf([segment(MB, CODE)] * 200))
    with pytest.raises(InputError, match="overlaps"):
        load(kernel(image), Ram(RAM_SIZE))
    struct.pack_into("<H", image, 56, 0xFFFF)
    with pytest.raises(InputError, match="65535 program headers"):
        load(kernel(image), Ram(RAM_SIZE))
