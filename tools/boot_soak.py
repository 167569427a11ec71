# SPDX-License-Identifier: GPL-2.0-or-later
"""Boot Linux N times: ``python tools/boot_soak.py 20 [bt run options]``.

Every boot has to print the kernel's name, end with the command's status and leave a kernel log with
nothing alarming in it. Prints one line a boot, and the log of one that failed; exits 1 if any did.
"""

from __future__ import annotations

import re
import subprocess
import sys
import time

_STATUS = 7
_COMMAND = ("sh", "-c", f"uname -s; dmesg; exit {_STATUS}")
_LIMIT_S = 120

#: What a kernel log says only when something is wrong.
ALARMING = re.compile(
    r"WARNING:|BUG:|Oops|Call Trace|general protection|segfault|unstable|hung_task|soft lockup"
    r"|rcu.*stall|rcu.*detected|irq \d+: nobody cared|Spurious|double fault|invalid opcode"
    r"|too many retries|self-tests? .*fail", re.IGNORECASE)


def problem(status: int, out: str, err: str) -> str | None:
    """What is wrong with a boot that ended so; None for a good one."""
    if status != _STATUS:
        return f"status {status}: {err.strip().splitlines()[-1:] or 'it says nothing'}"
    if not out.startswith("Linux\n") or "Linux version" not in out:
        return f"output starts with {out[:80]!r}"
    alarm = next((line for line in out.splitlines() if ALARMING.search(line)), None)
    return f"kernel log: {alarm}" if alarm else None


def boot(options: list[str]) -> tuple[str | None, str]:
    """One boot: (problem or None, all that it printed)."""
    command = [sys.executable, "-m", "bt", "run", "linux", "--timeout", str(_LIMIT_S), *options,
               "--", *_COMMAND]
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True,
                          errors="replace")
    return problem(done.returncode, done.stdout, done.stderr), done.stdout + done.stderr


def main(argv: list[str]) -> int:
    """Boot as often as ``argv[0]`` says (20 times by default); the exit status."""
    if argv and not argv[0].isdecimal():
        print("usage: boot_soak.py [N [bt run options]]", file=sys.stderr)
        return 2
    times = int(argv[0]) if argv else 20
    failed = 0
    for number in range(1, times + 1):
        started = time.perf_counter()
        wrong, printed = boot(argv[1:])
        took = time.perf_counter() - started
        print(f"boot {number:3}: {wrong or 'good'} ({took:.2f} s)", flush=True)
        if wrong:
            failed += 1
            print(printed)
    print(f"{times - failed} of {times} boots good")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
