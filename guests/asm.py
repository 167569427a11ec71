# SPDX-License-Identifier: GPL-2.0-or-later
"""The assembler of the sample guests: a two-pass driver around keystone.

Keystone encodes single instructions well but is no assembler for programs: it reads bare numbers
as hexadecimal, refuses ``.align``, local labels and symbols between calls, and gets a handful of
system instructions wrong. So this driver does everything that is not encoding (sections, labels,
expressions, macros, conditionals, layout) and hands keystone one instruction at a time, with
every symbol already a number.

The language
    ``label:``; ``@local:`` belongs to the last plain label; ``;`` starts a comment
    Intel syntax, ``[symbol + reg*8]``; in 64-bit code a bare ``[symbol]`` becomes RIP-relative
    ``.section NAME``  continue that section; sections are page-aligned, in order of appearance
    ``.bits 16|32|64`` ``.align N`` ``.space N[, fill]``
    ``.byte .word .long .quad`` ``.ascii .asciz``
    ``.equ NAME, expr``  a number   ``.define NAME text``  a textual alias
    ``.macro NAME a, b=default`` ... ``.endm``: ``\\a`` is the argument, ``\\@`` a unique number
    ``.rept N`` ... ``.endr``; ``.if expr`` / ``.else`` / ``.endif``; ``.include "file"``

System instructions have one spelling per operand size, whatever keystone would guess:
``pushfw/d/q popfw/d/q iretw/d/q retfw/d/q sysretl/q sysexitl/q``, ``jmpf/callf SEL, OFF`` (16- and
32-bit code) and ``jmpfw/d/q callfw/d/q [mem]``; see :data:`FIXED` and :meth:`Assembler._far`.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

LOAD_BASE = 0x100000  #: where the first section goes: 1 MiB, the multiboot custom
PAGE = 0x1000
MAX_PASSES = 12
PLACEHOLDER = 0x5A17C0DE  #: an address in 64-bit code until the instruction's length is known
NOBITS = "bss"  #: the section that takes no room in the file
NOTE = "note"  #: the section that a PT_NOTE program header points at

_REGISTERS = set(
    "al ah ax eax rax bl bh bx ebx rbx cl ch cx ecx rcx dl dh dx edx rdx si sil esi rsi di dil edi "
    "rdi bp bpl ebp rbp sp spl esp rsp ip eip rip cs ds es fs gs ss".split()
) | {f"r{n}{s}" for n in range(8, 16) for s in ("", "d", "w", "b")} | {
    f"{kind}{n}" for kind in ("cr", "dr", "xmm", "st", "mm") for n in range(16)}
_PREFIXES = {"rep": 0xF3, "repe": 0xF3, "repz": 0xF3, "repne": 0xF2, "repnz": 0xF2, "lock": 0xF0}
_WORD = re.compile(r"[A-Za-z_@$][\w@$.]*")
_STRING = re.compile(r'"(?:[^"\\]|\\.)*"')
_ESCAPES = {"n": "\n", "r": "\r", "t": "\t", "0": "\0", "\\": "\\", '"': '"'}
_BRANCH = re.compile(r"j\w+|call|loop\w*")

# Encodings keystone refuses or gets wrong. The operand-size prefix depends on the mode: 16-bit
# code needs it for the 32-bit form, other code for the 16-bit form.
_SIZED = {"pushf": 0x9C, "popf": 0x9D, "iret": 0xCF, "retf": 0xCB}
FIXED: dict[tuple[int, str], bytes] = {}
for _bits in (16, 32, 64):
    for _name, _opcode in _SIZED.items():
        _w, _d = (b"", b"\x66") if _bits == 16 else (b"\x66", b"")
        FIXED[_bits, _name + "w"] = _w + bytes([_opcode])
        FIXED[_bits, _name + "d"] = _d + bytes([_opcode])
        if _bits == 64:
            # pushf/popf default to 64 bits and have no 32-bit form; iret and retf need REX.W.
            default64 = _name in ("pushf", "popf")
            FIXED[64, _name + "q"] = (b"" if default64 else b"\x48") + bytes([_opcode])
            if default64:
                del FIXED[64, _name + "d"]
    for _i, _seg in enumerate(("es", "cs", "ss", "ds")):
        if _bits != 64:
            FIXED[_bits, f"push {_seg}"] = bytes([0x06 + 8 * _i])
            if _seg != "cs":
                FIXED[_bits, f"pop {_seg}"] = bytes([0x07 + 8 * _i])
    for _seg, _opcode in (("fs", 0xA0), ("gs", 0xA8)):
        FIXED[_bits, f"push {_seg}"] = bytes([0x0F, _opcode])
        FIXED[_bits, f"pop {_seg}"] = bytes([0x0F, _opcode + 1])
    FIXED[_bits, "sysretl"] = b"\x0f\x07"
    FIXED[_bits, "sysexitl"] = b"\x0f\x35"
    FIXED[_bits, "ret"] = b"\x66\xc3" if _bits == 16 else b"\xc3"  # as keystone's 16-bit call
    FIXED[_bits, "movsd"] = b"\x66\xa5" if _bits == 16 else b"\xa5"  # keystone: only SSE's
FIXED[64, "sysretq"] = b"\x48\x0f\x07"
FIXED[64, "sysexitq"] = b"\x48\x0f\x35"
#: Spellings whose width keystone guesses; the dialect does not have them.
_AMBIGUOUS = {"pushf", "popf", "iret", "retf", "sysret", "sysexit", "ljmp", "lcall"}


class AsmError(Exception):
    """A mistake in a guest's source: ``file:line: what``."""


@dataclass
class _Macro:
    params: list[tuple[str, str | None]]
    body: list[tuple[str, int, str]]


@dataclass
class _Statement:
    where: str
    bits: int
    section: str
    kind: str  # label, equ, data, bytes, align, space, insn
    name: str = ""
    args: tuple[Any, ...] = ()


@dataclass
class Section:
    """A laid-out section: ``size`` bytes at physical address ``address`` (``data`` empty: bss)."""

    name: str
    address: int
    size: int
    data: bytes


@dataclass
class Program:
    """An assembled guest: sections in address order and every symbol's value."""

    sections: list[Section]
    symbols: dict[str, int]
    instructions: list[tuple[int, int, bytes, str]] = field(default_factory=list)
    """(address, bits, encoding, source text) of each instruction: tests disassemble them again."""


def _split(text: str, separator: str = ",") -> list[str]:
    """Split at separators outside strings, brackets and parentheses."""
    parts, depth, quote, start, i = [], 0, "", 0, 0
    while i < len(text):
        c = text[i]
        if quote:
            if c == "\\":
                i += 1
            elif c == quote:
                quote = ""
        elif c in "\"'":
            quote = c
        elif c in "([":
            depth += 1
        elif c in ")]":
            depth -= 1
        elif c == separator and depth == 0:
            parts.append(text[start:i].strip())
            start = i + 1
        i += 1
    tail = text[start:].strip()
    return parts + [tail] if tail or parts else []


def _strip_comment(line: str) -> str:
    if ";" not in line:
        return line.strip()
    return _split(line.strip() + ";", ";")[0]


def _unquote(text: str) -> bytes:
    return re.sub(r"\\(.)", lambda m: _ESCAPES[m[1]], text[1:-1]).encode("latin-1")


class _Preprocessor:
    """Turns source text into statements: includes, macros, conditionals and aliases are gone."""

    def __init__(self) -> None:
        self.statements: list[_Statement] = []
        self.macros: dict[str, _Macro] = {}
        self.aliases: dict[str, str] = {}
        self.constants: dict[str, int] = {}
        self.section, self.bits, self.scope, self.unique = "text", 32, "", 0
        self.files: list[Path] = []

    def file(self, path: Path) -> None:
        self.files.append(path)
        lines = path.read_text().splitlines()
        name = f"{path.parent.name}/{path.name}"
        self.lines([(name, n, text) for n, text in enumerate(lines, 1)], path.parent)

    def _block(self, lines: list[tuple[str, int, str]], start: int, end: str) -> int:
        """Index of the line that closes the block opened at ``start``."""
        opener, depth = _strip_comment(lines[start][2]).split()[0], 0
        for i in range(start, len(lines)):
            words = _strip_comment(lines[i][2]).split()
            if words and words[0] == opener:
                depth += 1
            elif words and words[0] == end:
                depth -= 1
                if depth == 0:
                    return i
        raise AsmError(f"{lines[start][0]}:{lines[start][1]}: {opener} without {end}")

    def lines(self, lines: list[tuple[str, int, str]], folder: Path) -> None:
        i = 0
        while i < len(lines):
            file, number, raw = lines[i]
            where = f"{file}:{number}"
            text = _strip_comment(raw)
            words = text.split(None, 1)
            if not words:
                i += 1
                continue
            head, rest = words[0], words[1] if len(words) > 1 else ""
            if head == ".macro":
                end = self._block(lines, i, ".endm")
                name, _, params = rest.partition(" ")
                self.macros[name] = _Macro(
                    [(p.partition("=")[0].strip(),
                      p.partition("=")[2].strip() if "=" in p else None)
                     for p in _split(params)], lines[i + 1:end])
                i = end
            elif head == ".rept":
                end = self._block(lines, i, ".endr")
                for _ in range(self._number(rest, where)):
                    self.lines(lines[i + 1:end], folder)
                i = end
            elif head == ".if":
                end = self._block(lines, i, ".endif")
                body, otherwise, depth = lines[i + 1:end], [], 0
                for j, (_, _, line) in enumerate(body):
                    first = (_strip_comment(line).split() or [""])[0]
                    depth += (first == ".if") - (first == ".endif")
                    if first == ".else" and depth == 0:
                        body, otherwise = body[:j], body[j + 1:]
                        break
                self.lines(body if self._number(rest, where) else otherwise, folder)
                i = end
            elif head == ".include":
                self.file((folder / _unquote(rest).decode()).resolve())
            elif head == ".define":
                name, _, value = rest.partition(" ")
                self.aliases[name] = value.strip()
            elif head in self.macros:
                self._expand(head, rest, where, folder)
            else:
                self._statement(text, where)
            i += 1

    def _expand(self, name: str, rest: str, where: str, folder: Path) -> None:
        macro, args = self.macros[name], _split(rest)
        if len(args) > len(macro.params):
            raise AsmError(f"{where}: {name} takes {len(macro.params)} arguments")
        self.unique += 1
        values = {"@": str(self.unique)}
        for index, (param, default) in enumerate(macro.params):
            value = args[index] if index < len(args) and args[index] else default
            if value is None:
                raise AsmError(f"{where}: {name}: argument {param} missing")
            values[param] = value
        expand = re.compile(r"\\(@|\w+)(?:\(\))?")
        self.lines([(f"{where} {name}", n,
                     expand.sub(lambda m: values.get(m[1], m[0]), text))
                    for _, n, text in macro.body], folder)

    def _alias(self, text: str) -> str:
        def swap(m: re.Match[str]) -> str:
            return self.aliases.get(m[0], m[0])
        pieces, last = [], 0
        for string in _STRING.finditer(text):
            pieces += [_WORD.sub(swap, text[last:string.start()]), string[0]]
            last = string.end()
        return "".join(pieces) + _WORD.sub(swap, text[last:])

    def _number(self, text: str, where: str) -> int:
        return _evaluate(self._alias(text), lambda name: self._constant(name, where), where)

    def _constant(self, name: str, where: str) -> int:
        if name not in self.constants:
            raise AsmError(f"{where}: {name} is no constant known here")
        return self.constants[name]

    def _add(self, where: str, kind: str, name: str = "", args: tuple[Any, ...] = ()) -> None:
        self.statements.append(_Statement(where, self.bits, self.section, kind, name, args))

    def _local(self, text: str) -> str:
        return re.sub(r"(?<![\w@])@(\w+)", lambda m: f"{self.scope}@{m[1]}", text)

    def _statement(self, text: str, where: str) -> None:
        if m := re.match(r"(@?[A-Za-z_$][\w$]*):\s*(.*)", text):
            if not m[1].startswith("@"):
                self.scope = m[1]
            self._add(where, "label", self._local(m[1]))
            if m[2]:
                self.lines([(where, 0, m[2])], Path())
            return
        text = self._local(self._alias(text))
        head, _, rest = text.partition(" ")
        if not head.startswith("."):
            self._add(where, "insn", " ".join(text.split()))
            return
        args = tuple(_split(rest))
        sizes = {".byte": 1, ".word": 2, ".long": 4, ".quad": 8}
        if head == ".section":
            self.section = rest.strip()
            self._add(where, "bytes", args=(b"",))
        elif head == ".bits":
            self.bits = self._number(rest, where)
        elif head == ".equ":
            try:
                self.constants[args[0]] = self._number(args[1], where)
            except AsmError:
                pass  # depends on a label: only the passes know it
            self._add(where, "equ", args[0], (args[1],))
        elif head in sizes:
            self._add(where, "data", args=(sizes[head], args))
        elif head in (".ascii", ".asciz"):
            end = b"\0" if head == ".asciz" else b""
            self._add(where, "bytes", args=(b"".join(_unquote(a) + end for a in args),))
        elif head == ".align":
            self._add(where, "align", args=(self._number(rest, where),))
        elif head == ".space":
            self._add(where, "space", args=(args[0], self._number(args[1], where)
                                            if len(args) > 1 else 0))
        else:
            raise AsmError(f"{where}: unknown directive {head}")


def _evaluate(text: str, lookup: Callable[[str], int], where: str) -> int:
    """Value of an expression in Python's integer operators; ``lookup`` resolves names."""
    text = re.sub(r"'(\\?.)'", lambda m: str(ord(_unquote(f'"{m[1]}"'))), text)
    stripped = re.sub(r"0[xX][0-9a-fA-F]+", " ", text)
    if not re.fullmatch(r"[\w@$.\s+\-*/%<>&|^~()=!]*", stripped):
        raise AsmError(f"{where}: bad expression {text!r}")
    pieces, last = [], 0
    for m in re.finditer(r"0[xX][0-9a-fA-F]+|0[bB][01]+|[A-Za-z_@$][\w@$.]*", text):
        pieces.append(text[last:m.start()])
        pieces.append(m[0] if m[0][0] == "0" else str(lookup(m[0])))
        last = m.end()
    source = "".join(pieces) + text[last:]
    try:
        return int(eval(source.replace("/", "//"), {"__builtins__": {}}))  # digits and operators
    except (SyntaxError, TypeError, ZeroDivisionError) as error:
        raise AsmError(f"{where}: bad expression {text!r}") from error


def _has_register(text: str) -> bool:
    return any(w.lower() in _REGISTERS for w in _WORD.findall(text))


def _hex(value: int) -> str:
    return f"-{-value:#x}" if value < 0 else f"{value:#x}"


class Assembler:
    """Assembles one guest. ``Assembler().assemble(path)`` -> :class:`Program`."""

    def __init__(self) -> None:
        import keystone

        self._error = keystone.KsError
        self._engines = {bits: keystone.Ks(keystone.KS_ARCH_X86, mode) for bits, mode in (
            (16, keystone.KS_MODE_16), (32, keystone.KS_MODE_32), (64, keystone.KS_MODE_64))}
        self._memo: dict[tuple[int, str, int], bytes] = {}
        self.symbols: dict[str, int] = {}
        self._final = False

    def assemble(self, path: Path) -> Program:
        """Assemble a source file; raises :class:`AsmError` with the place of the first mistake."""
        source = _Preprocessor()
        source.file(path)
        names = list(dict.fromkeys(s.section for s in source.statements))
        if NOBITS in names:
            names = [n for n in names if n != NOBITS] + [NOBITS]
        sizes = {name: PAGE for name in names}
        # Passes repeat until nothing moves: branches shrink once their targets are known.
        for _ in range(MAX_PASSES):
            before = dict(self.symbols)
            out = self._pass(source.statements, names, sizes)
            sizes = {name: len(data) for name, data in out.items()}
            if before == self.symbols:
                break
        else:
            raise AsmError(f"{path}: layout does not settle")
        self._final = True
        out = self._pass(source.statements, names, sizes)
        bases = self._bases(names, sizes)
        return Program([Section(n, bases[n], len(out[n]), b"" if n == NOBITS else bytes(out[n]))
                        for n in names if out[n]], dict(self.symbols), self._instructions)

    @staticmethod
    def _bases(names: list[str], sizes: dict[str, int]) -> dict[str, int]:
        bases, address = {}, LOAD_BASE
        for name in names:
            bases[name] = address
            address += -(-sizes[name] // PAGE) * PAGE
        return bases

    def _pass(self, statements: list[_Statement], names: list[str],
              sizes: dict[str, int]) -> dict[str, bytearray]:
        out = {name: bytearray() for name in names}
        bases = self._bases(names, sizes)
        for name in names:
            self.symbols[f"{name}_start"] = bases[name]
            self.symbols[f"{name}_end"] = bases[name] + sizes[name]
        self._instructions: list[tuple[int, int, bytes, str]] = []
        defined: set[str] = set()
        for s in statements:
            data = out[s.section]
            here = bases[s.section] + len(data)
            match s.kind:
                case "label" | "equ":
                    if s.kind == "label" and s.name in defined:
                        raise AsmError(f"{s.where}: {s.name} defined twice")
                    defined.add(s.name)
                    value = here if s.kind == "label" else self._value(s.args[0], s, here)
                    self.symbols[s.name] = value
                case "data":
                    size, items = s.args
                    for item in items:
                        value = self._value(item, s, here) & ((1 << (8 * size)) - 1)
                        data += value.to_bytes(size, "little")
                case "bytes":
                    data += s.args[0]
                case "align":
                    data += bytes([0x90 if s.section == "text" else 0]) * (-here % s.args[0])
                case "space":
                    data += bytes([s.args[1]]) * self._value(s.args[0], s, here)
                case "insn":
                    code = self._instruction(s, here)
                    self._instructions.append((here, s.bits, code, s.name))
                    data += code
        return out

    def _value(self, text: str, s: _Statement, here: int) -> int:
        def lookup(name: str) -> int:
            if name == "$":
                return here
            if name in self.symbols:
                return self.symbols[name]
            if self._final:
                raise AsmError(f"{s.where}: {name} is not defined")
            return here  # a label still to come: the first guess
        return _evaluate(text, lookup, s.where)

    def _operand(self, text: str, s: _Statement, here: int) -> str:
        """The operand with its constant part folded into one number keystone reads the same."""
        if m := re.fullmatch(r"(.*?)\[(.*)\]", text):
            terms = re.findall(r"[+-]?[^+-]+", m[2].replace(" ", ""))
            kept = [t.lstrip("+") for t in terms if _has_register(t)]
            constant = "".join(t for t in terms if not _has_register(t))
            prefix, inner = m[1], "+".join(self._scale(t) for t in kept)
            if constant:
                value = self._value(constant.lstrip("+"), s, here)
                if s.bits == 64 and not kept:
                    self._absolute = value
                    return f"{prefix}[rip+{PLACEHOLDER:#x}]"
                inner += ("" if not inner or value < 0 else "+") + _hex(value)
            return f"{prefix}[{inner}]"
        if _has_register(text):
            return text
        return _hex(self._value(text, s, here))

    @staticmethod
    def _scale(term: str) -> str:
        return re.sub(r"\*(\d+)$", lambda m: f"*{int(m[1]):#x}", term)

    def _instruction(self, s: _Statement, here: int) -> bytes:
        if fixed := FIXED.get((s.bits, s.name)):
            return fixed
        head, _, rest = s.name.partition(" ")
        prefix = ""
        if head in _PREFIXES:
            prefix = head + " "
            head, _, rest = rest.partition(" ")
            if fixed := FIXED.get((s.bits, head)):
                return bytes([_PREFIXES[prefix.strip()]]) + fixed
        if head in _AMBIGUOUS:
            raise AsmError(f"{s.where}: {head} has a width: write it with its suffix")
        self._absolute: int | None = None
        operands = [self._operand(o, s, here) for o in _split(rest)]
        if m := re.fullmatch(r"(jmpf|callf)([wdq]?)", head):
            return self._far(m[1], m[2], operands, s, here)
        code = self._keystone(s, f"{prefix}{head} {', '.join(operands)}".strip(), here)
        # Keystone puts a stray operand-size prefix on these in 32-bit code: a 24-bit base.
        if s.bits == 32 and head in ("lgdt", "lidt", "sgdt", "sidt"):
            code = code.removeprefix(b"\x66")
        return code

    def _far(self, name: str, width: str, operands: list[str], s: _Statement, here: int) -> bytes:
        """A far jump or call: keystone has neither direct nor sized memory forms that work."""
        natural = "w" if s.bits == 16 else "d"
        prefix = b"" if (width or natural) == natural else b"\x48" if width == "q" else b"\x66"
        if len(operands) == 2:
            selector, offset = (int(o, 16) for o in operands)
            size = 2 if (width or natural) == "w" else 4
            opcode = b"\xea" if name == "jmpf" else b"\x9a"
            if not self._final:  # guesses may not fit yet
                selector, offset = selector & 0xFFFF, offset & ((1 << 8 * size) - 1)
            return prefix + opcode + offset.to_bytes(size, "little") + struct.pack("<H", selector)
        # Near indirect is FF /4 (jmp) or /2 (call); the far form is the next group member.
        size = {16: "word", 32: "dword", 64: "qword"}[s.bits]
        near = self._keystone(s, f"{name[:-1]} {size} ptr {operands[0]}", here + len(prefix))
        at = near.index(0xFF) + 1
        return prefix + near[:at] + bytes([near[at] + 8]) + near[at + 1:]

    def _keystone(self, s: _Statement, text: str, here: int) -> bytes:
        key = (s.bits, text, here if _BRANCH.match(text) and "[" not in text else 0)
        if key not in self._memo:
            try:
                encoded, _ = self._engines[s.bits].asm(text, here)
            except self._error as error:
                if not self._final:  # a guess may be out of range; the last pass has no guesses
                    return bytes(4)
                raise AsmError(f"{s.where}: {s.name}: {error}") from error
            if not encoded:
                raise AsmError(f"{s.where}: {s.name}: keystone gave no encoding for {text!r}")
            self._memo[key] = bytes(encoded)
        code = self._memo[key]
        return code if self._absolute is None else self._address(code, text, here)

    def _address(self, code: bytes, text: str, here: int) -> bytes:
        """Put the address of a bare ``[symbol]`` in 64-bit code where the placeholder is.

        Keystone makes these RIP-relative by itself, but forgets to subtract RIP for some opcodes.
        With a segment override the address is an offset in that segment: absolute, not relative.
        """
        assert self._absolute is not None
        at = code.index(PLACEHOLDER.to_bytes(4, "little"))
        if re.search(r"[defgs]s:\[", text):
            modrm = bytes([code[at - 1] & 0xF8 | 4, 0x25])  # SIB: no base, no index
            return code[:at - 1] + modrm + struct.pack("<i", self._absolute) + code[at + 4:]
        displacement = self._absolute - (here + len(code))
        return code[:at] + struct.pack("<i", displacement) + code[at + 4:]


def elf32(program: Program) -> bytes:
    """The program as a static ELF32 (EM_386) executable, one segment a section.

    ELF32 even for 64-bit guests: multiboot enters in 32-bit protected mode, and QEMU refuses
    anything else. The entry point is the symbol ``start``. A symbol table is included, so that
    tools can name guest addresses.
    """
    segments, notes, blob = [], [], bytearray(PAGE)
    for section in program.sections:
        flags = 5 if section.name == "text" else 6
        segments.append(struct.pack("<8I", 1, len(blob), section.address, section.address,
                                    len(section.data), section.size, flags, PAGE))
        if section.name == NOTE:
            notes.append(struct.pack("<I", 4) + segments[-1][4:])
        blob += section.data + bytes(-len(section.data) % PAGE)
    names, entries = bytearray(1), bytearray(16)
    for name, value in sorted(program.symbols.items(), key=lambda item: item[1]):
        index = next((i for i, s in enumerate(program.sections, 1)
                      if s.address <= value < s.address + s.size), 0)
        if index:
            entries += struct.pack("<IIIBBH", len(names), value, 0, 0, 0, index)
            names += name.encode() + b"\0"
    # Section headers: null, one per section, .symtab, .strtab (which also holds section names).
    headers = bytearray(40)
    for section, segment in zip(program.sections, segments, strict=True):
        offset = struct.unpack_from("<I", segment, 4)[0]
        headers += struct.pack("<10I", len(names), {NOBITS: 8, NOTE: 7}.get(section.name, 1),
                               6 if section.name == "text" else 3, section.address, offset,
                               section.size, 0, 0, PAGE, 0)
        names += f".{section.name}\0".encode()
    count = len(program.sections)
    symtab_name, strtab_name = len(names), len(names) + 8
    names += b".symtab\0.strtab\0"
    symtab_at = len(blob)
    blob += entries
    strtab_at = len(blob)
    blob += names
    headers += struct.pack("<10I", symtab_name, 2, 0, 0, symtab_at, len(entries), count + 2,
                           len(entries) // 16, 4, 16)
    headers += struct.pack("<10I", strtab_name, 3, 0, 0, strtab_at, len(names), 0, 0, 1, 0)
    blob += bytes(-len(blob) % 4)
    headers_at = len(blob)
    blob += headers
    identity = b"\x7fELF\x01\x01\x01" + bytes(9)
    header = identity + struct.pack("<HHIIIIIHHHHHH", 2, 3, 1, program.symbols["start"], 52,
                                    headers_at, 0, 52, 32, len(segments + notes), 40, count + 3,
                                    count + 2)
    blob[:len(header)] = header
    blob[52:52 + 32 * len(segments + notes)] = b"".join(segments + notes)
    return bytes(blob)
