# SPDX-License-Identifier: GPL-2.0-or-later
# cython: language_level=3
"""Where a thread's processor time goes: a timer's signal looks at its program counter.

`start` has a timer of the host's interrupt the calling thread. The signal's handler finds the part
of the process that was interrupted, by ranges of addresses, and books on it the processor time that
the thread has used since the sample before. Booking time, and not counting samples, makes up for a
thread that slept or was not scheduled: it used nothing meanwhile. Nothing that is measured knows of
it, so it costs the same everywhere: a few microseconds a sample.

Code that anybody may call (the C library's memset, say) counts as whoever called it: the handler
goes up the stack, by the compilers' own tables, to the first caller that is in a part. To look for
an address on the stack would be simpler and wrong: what was called before leaves its own there.

The handler calls clock_gettime and, for such code only, the compiler's unwinder, which allocates
nothing (signal-safety(7), backtrace(3)). There is one sampler a process.
"""

from libc.stdint cimport uint64_t, uintptr_t
from libc.string cimport memset

cdef extern from *:
    """
    #include <errno.h>
    #include <signal.h>
    #include <sys/syscall.h>
    #include <time.h>
    #include <ucontext.h>
    #include <unistd.h>
    #include <unwind.h>
    #ifndef sigev_notify_thread_id      /* timer_create(2) names it, older C libraries do not */
    #define sigev_notify_thread_id _sigev_un._tid
    #endif
    #if defined(__x86_64__)
    #define sampled_pc(context) ((context)->uc_mcontext.gregs[REG_RIP])
    #elif defined(__aarch64__)
    #define sampled_pc(context) ((context)->uc_mcontext.pc)
    #endif
    """
    ctypedef struct sigset_t:
        pass
    ctypedef struct siginfo_t:
        pass
    ctypedef struct ucontext_t:
        pass
    ctypedef void (*Handler)(int, siginfo_t *, void *) noexcept nogil
    ctypedef struct sigaction_t "struct sigaction":
        Handler sa_sigaction
        void (*sa_handler)(int)
        sigset_t sa_mask
        int sa_flags
    ctypedef struct sigevent_t "struct sigevent":
        int sigev_notify
        int sigev_signo
        int sigev_notify_thread_id
    ctypedef struct timespec_t "struct timespec":
        long tv_sec
        long tv_nsec
    ctypedef struct itimerspec_t "struct itimerspec":
        timespec_t it_interval
        timespec_t it_value
    ctypedef void *timer_t
    void (*SIG_IGN)(int)
    int SIGPROF, SA_SIGINFO, SA_RESTART, SIGEV_THREAD_ID
    int CLOCK_MONOTONIC, CLOCK_THREAD_CPUTIME_ID, SYS_gettid
    uint64_t sampled_pc(ucontext_t *context) nogil
    ctypedef struct unwind_context "struct _Unwind_Context":
        pass
    ctypedef enum unwind_code "_Unwind_Reason_Code":
        _URC_NO_REASON
        _URC_END_OF_STACK
    ctypedef unwind_code (*Visitor)(unwind_context *, void *) noexcept nogil
    unwind_code _Unwind_Backtrace(Visitor visit, void *data) nogil
    uintptr_t _Unwind_GetIP(unwind_context *context) nogil
    int sigemptyset(sigset_t *set)
    int sigaction(int number, const sigaction_t *new, sigaction_t *old)
    int timer_create(int clock, sigevent_t *event, timer_t *timer)
    int timer_settime(timer_t timer, int flags, const itimerspec_t *new, itimerspec_t *old)
    int timer_delete(timer_t timer)
    int clock_gettime(int clock, timespec_t *ts) nogil
    long syscall(long number)

cdef enum:
    MAX_RANGES = 512
    MAX_PARTS = 16              # the last one is for what is found in no range
    MAX_FRAMES = 32             # gone up to a caller, the handler's own two among them

cdef struct Range:              # sorted by address, none overlaps another
    uint64_t start
    uint64_t end
    int part

cdef struct Sampler:
    bint running
    timer_t timer
    sigaction_t before          # what the signal did before
    Range ranges[MAX_RANGES]
    int n_ranges
    uint64_t used_ns[MAX_PARTS]
    uint64_t samples
    uint64_t seen_ns            # processor time of the thread at the last sample

cdef Sampler state

cdef uint64_t thread_ns() noexcept nogil:
    cdef timespec_t ts
    clock_gettime(CLOCK_THREAD_CPUTIME_ID, &ts)
    return <uint64_t>ts.tv_sec * 1000000000 + <uint64_t>ts.tv_nsec

cdef int part_of(uint64_t address) noexcept nogil:
    """The part that an address lies in, -1 if none."""
    cdef int low = 0
    cdef int high = state.n_ranges
    cdef int middle
    while low < high:
        middle = (low + high) // 2
        if address < state.ranges[middle].start:
            high = middle
        elif address >= state.ranges[middle].end:
            low = middle + 1
        else:
            return state.ranges[middle].part
    return -1

cdef struct Search:
    int part
    int frames

cdef unwind_code on_frame(unwind_context *frame, void *data) noexcept nogil:
    cdef Search *search = <Search *>data
    search.part = part_of(_Unwind_GetIP(frame))
    search.frames += 1
    return _URC_NO_REASON if search.part < 0 and search.frames < MAX_FRAMES else _URC_END_OF_STACK

cdef void on_sample(int number, siginfo_t *info, void *data) noexcept nogil:
    cdef uint64_t now = thread_ns()
    cdef Search search
    search.part = part_of(sampled_pc(<ucontext_t *>data))
    search.frames = 0
    if search.part < 0:
        _Unwind_Backtrace(on_frame, &search)
    state.used_ns[search.part if search.part >= 0 else MAX_PARTS - 1] += now - state.seen_ns
    state.seen_ns = now
    state.samples += 1

def start(parts, long interval_ns):
    """Sample the calling thread every ``interval_ns`` (1 to 999,999,999) of host time.

    ``parts``: [(address, address behind it, part)], with parts from 0 to 14; code in none of them,
    which this module must be, counts as its caller. Raises RuntimeError if samples are being taken
    already, ValueError for too many ranges, OSError if the host has no timer for us.
    """
    cdef sigaction_t action
    cdef sigevent_t event
    cdef itimerspec_t every
    cdef int i
    if state.running:
        raise RuntimeError("samples of another thread or run are being taken")
    parts = sorted(parts)
    if len(parts) > MAX_RANGES or not all(0 <= part < MAX_PARTS - 1 for _, _, part in parts):
        raise ValueError("too many ranges, or no such part")
    if not 0 < interval_ns < 1000000000:
        raise ValueError("not an interval below a second")
    state.n_ranges = len(parts)
    for i, (low, high, part) in enumerate(parts):
        state.ranges[i].start, state.ranges[i].end, state.ranges[i].part = low, high, part
    memset(state.used_ns, 0, sizeof(state.used_ns))
    memset(&action, 0, sizeof(action))
    memset(&event, 0, sizeof(event))
    action.sa_sigaction = on_sample
    action.sa_flags = SA_SIGINFO | SA_RESTART
    sigemptyset(&action.sa_mask)
    event.sigev_notify = SIGEV_THREAD_ID
    event.sigev_signo = SIGPROF
    event.sigev_notify_thread_id = <int>syscall(SYS_gettid)
    if timer_create(CLOCK_MONOTONIC, &event, &state.timer) != 0:
        raise OSError("the host has no timer to sample with")
    sigaction(SIGPROF, &action, &state.before)
    state.running = True
    state.samples = 0
    every.it_interval.tv_sec = every.it_value.tv_sec = 0
    every.it_interval.tv_nsec = every.it_value.tv_nsec = interval_ns
    state.seen_ns = thread_ns()
    timer_settime(state.timer, 0, &every, NULL)

def stop():
    """End it: (samples taken, [processor time by part, ns]); the last part is code of none.

    On the thread that called `start`. Raises RuntimeError if it was not called.
    """
    cdef sigaction_t ignore
    if not state.running:
        raise RuntimeError("no samples are being taken")
    timer_delete(state.timer)
    # A last signal may be on its way: to ignore it throws it away, the default would end us.
    memset(&ignore, 0, sizeof(ignore))
    ignore.sa_handler = SIG_IGN
    sigaction(SIGPROF, &ignore, NULL)
    sigaction(SIGPROF, &state.before, NULL)
    state.running = False
    return state.samples, [state.used_ns[i] for i in range(MAX_PARTS)]
