# SPDX-License-Identifier: GPL-2.0-or-later
"""Every instruction of the table in every mode, written out by hand from the manuals.

Each line: row, modes, bytes, the mnemonic capstone must give. ``*`` = 16, 32 and 64.
"""

from typing import NamedTuple


class Golden(NamedTuple):
    row: str
    bits: int
    code: bytes
    mnemonic: str


_TEXT = """
CLI * fa cli
STI * fb sti
HLT * f4 hlt
CLI 64 48fa cli
CLI * 2efa cli
PUSHF 16 9c pushf
PUSHF 16 669c pushfd
PUSHF 32 9c pushfd
PUSHF 32 669c pushf
PUSHF 64 9c pushfq
PUSHF 64 669c pushf
PUSHF 64 489c pushfq
POPF 16 9d popf
POPF 16 669d popfd
POPF 32 9d popfd
POPF 32 669d popf
POPF 64 9d popfq
POPF 64 669d popf
IRET 16 cf iret
IRET 16 66cf iretd
IRET 32 cf iretd
IRET 32 66cf iret
IRET 64 cf iretd
IRET 64 48cf iretq
IRET 64 66cf iret
SGDT * 0f0106 sgdt
SGDT 64 660f0106 sgdt
SGDT 64 410f0106 sgdt
SGDT 64 670f0106 sgdt
SIDT * 0f010e sidt
LGDT * 0f0116 lgdt
LIDT * 0f011e lidt
SLDT * 0f00c0 sldt
SLDT * 0f0006 sldt
SLDT 64 480f00c0 sldt
SLDT 32 660f00c0 sldt
STR * 0f00c9 str
STR * 0f000e str
LLDT * 0f00d1 lldt
LLDT * 0f0016 lldt
LTR * 0f00d9 ltr
LTR * 0f001e ltr
VERR * 0f00e1 verr
VERR * 0f0026 verr
VERW * 0f00e9 verw
VERW * 0f002e verw
LAR * 0f02c1 lar
LAR * 0f0206 lar
LAR 64 480f02c1 lar
LSL * 0f03c1 lsl
LSL * 0f0306 lsl
MOV_FROM_SEG * 8cc8 mov
MOV_FROM_SEG * 8cd0 mov
MOV_FROM_SEG * 8c0e mov
MOV_FROM_SEG 64 488cc8 mov
MOV_FROM_SEG 64 418cc8 mov
MOV_FROM_SEG 32 668cc8 mov
MOV_TO_SEG * 8ec0 mov
MOV_TO_SEG * 8ed0 mov
MOV_TO_SEG * 8ed8 mov
MOV_TO_SEG * 8ee0 mov
MOV_TO_SEG * 8ee8 mov
MOV_TO_SEG * 8e16 mov
MOV_TO_SEG 64 488ed0 mov
PUSH_SEG 16 0e push
PUSH_SEG 16 16 push
PUSH_SEG 32 0e push
PUSH_SEG 32 16 push
PUSH_SEG 32 660e push
POP_SEG 16 07 pop
POP_SEG 16 17 pop
POP_SEG 16 1f pop
POP_SEG 32 07 pop
POP_SEG 32 17 pop
POP_SEG 32 1f pop
POP_SEG * 0fa1 pop
POP_SEG * 0fa9 pop
LOAD_FAR_PTR 16 c506 lds
LOAD_FAR_PTR 16 c406 les
LOAD_FAR_PTR 32 c506 lds
LOAD_FAR_PTR 32 c406 les
LOAD_FAR_PTR 32 66c406 les
LOAD_FAR_PTR * 0fb206 lss
LOAD_FAR_PTR * 0fb406 lfs
LOAD_FAR_PTR * 0fb506 lgs
LOAD_FAR_PTR 64 480fb206 lss
SWAPGS 64 0f01f8 swapgs
SMSW * 0f01e0 smsw
SMSW * 0f0126 smsw
SMSW 64 480f01e0 smsw
LMSW * 0f01f0 lmsw
LMSW * 0f0136 lmsw
CLTS * 0f06 clts
MOV_FROM_CR * 0f20c0 mov
MOV_FROM_CR * 0f20d1 mov
MOV_FROM_CR * 0f20da mov
MOV_FROM_CR * 0f20e3 mov
MOV_FROM_CR * 0f2000 mov
MOV_FROM_CR 64 410f20c0 mov
MOV_FROM_CR 64 440f20c0 mov
MOV_TO_CR * 0f22c0 mov
MOV_TO_CR * 0f22d8 mov
MOV_TO_CR 64 440f22c0 mov
MOV_FROM_DR * 0f21f8 mov
MOV_TO_DR * 0f23f8 mov
STAC * 0f01cb stac
CLAC * 0f01ca clac
XGETBV * 0f01d0 xgetbv
XSETBV * 0f01d1 xsetbv
RDMSR * 0f32 rdmsr
WRMSR * 0f30 wrmsr
RDPMC * 0f33 rdpmc
RDTSC * 0f31 rdtsc
RDTSCP * 0f01f9 rdtscp
RDPID * f30fc7f8 rdpid
CPUID * 0fa2 cpuid
INVLPG * 0f013e invlpg
INVPCID 32 660f388206 invpcid
INVPCID 64 660f388206 invpcid
WBINVD * 0f09 wbinvd
WBINVD * f30f09 wbnoinvd
INVD * 0f08 invd
IN * e460 in
IN * e560 in
IN * ec in
IN * ed in
IN * 66ed in
OUT * e660 out
OUT * e760 out
OUT * ee out
OUT * ef out
INS * 6c insb
INS 16 6d insw
INS 32 6d insd
INS 64 6d insd
INS * f36c rep insb
OUTS * 6e outsb
OUTS 16 6f outsw
OUTS 32 6f outsd
OUTS 64 6f outsd
OUTS * f36e rep outsb
MONITOR * 0f01c8 monitor
MWAIT * 0f01c9 mwait
PAUSE * f390 pause
FAR_CALL 16 9a34127856 lcall
FAR_CALL 32 9a785634121000 lcall
FAR_CALL 16 ff1e0010 lcall
FAR_CALL 32 ff1e call
FAR_CALL 64 ff1e call
FAR_CALL 64 48ff1e lcall
FAR_JMP 16 ea34127856 ljmp
FAR_JMP 32 ea785634121000 ljmp
FAR_JMP 32 66ea34127856 ljmp
FAR_JMP 16 ff2e0010 ljmp
FAR_JMP 32 ff2e jmp
FAR_JMP 64 ff2e jmp
FAR_JMP 64 48ff2e ljmp
FAR_RET * cb retf
FAR_RET * ca0800 retf
FAR_RET 64 48cb retfq
FAR_RET 64 48ca0800 retfq
INT_N * cd80 int
INT3 * cc int3
INT1 * f1 int1
INTO 16 ce into
INTO 32 ce into
SYSCALL * 0f05 syscall
SYSENTER * 0f34 sysenter
SYSRET * 0f07 sysret
SYSRET 64 480f07 sysretq
SYSEXIT * 0f35 sysexit
SYSEXIT 64 480f35 sysexitq
VMCALL * 0f01c1 vmcall
VMMCALL * 0f01d9 vmmcall
"""


def _golden():
    for line in _TEXT.strip().splitlines():
        row, modes, code, mnemonic = line.split(maxsplit=3)
        for bits in (16, 32, 64) if modes == "*" else (int(modes),):
            data = bytes.fromhex(code)
            # 16-bit ModRM 06, 0e ... is a 16-bit displacement; the lines above leave it out.
            plain = code.lstrip("6").removeprefix("f3")
            memory = not mnemonic.startswith(("ljmp", "lcall")) and len(data) > 1
            if bits == 16 and memory and data[-1] & 0xC7 == 0x06 and plain[:2] in (
                    "0f", "8c", "8e", "c4", "c5"):
                if len(data) > 2 or plain[:2] != "0f":
                    data += b"\x00\x10"
            yield Golden(row, bits, data, mnemonic)


GOLDEN = tuple(_golden())

# Look-alikes: near the table's encodings, and not sensitive.
INNOCENT = tuple(Golden("", bits, bytes.fromhex(code), mnemonic) for bits, code, mnemonic in (
    (64, "8cd8", "mov"), (64, "8ce0", "mov"), (64, "8cc0", "mov"), (32, "1e", "push"),
    (32, "06", "push"), (32, "0fa0", "push"), (64, "c5f877", "vzeroupper"),
    (32, "c5f877", "vzeroupper"), (64, "c4e27918c0", "vbroadcastss"), (64, "ff16", "call"),
    (64, "ff26", "jmp"), (64, "ff36", "push"), (64, "90", "nop"), (64, "f34190", "xchg"),
    (64, "f30f1efa", "endbr64"), (64, "0fc7f8", "rdseed"), (64, "0fc7f0", "rdrand"),
    (64, "0fc70e", "cmpxchg8b"), (64, "0fbac81f", ""), (64, "0f01ee", "rdpkru"),
    (64, "0f01d5", "xend"), (64, "0fae2e", "xrstor"), (64, "f30faec0", "rdfsbase"),
    (64, "0fb606", "movzx"), (64, "c3", "ret"), (64, "0f1f4000", "nop"), (64, "0f0b", "ud2"),
    (64, "8b0e", "mov"), (32, "63c1", "arpl"), (64, "b8fafbf4cf", "mov"),
    (64, "48c7c00f010f20", "mov"), (64, "66900f1f8000000000", "nop"),
) if mnemonic)
