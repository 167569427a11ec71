# SPDX-License-Identifier: GPL-2.0-or-later
# Preemption: a thread that tells the vCPU to come out when virtual time has reached a deadline, or
# when somebody (input, a person, a debugger) calls `kick`.
#
# Unicorn stops between blocks only (see no_exit_request in layout.pxi), so the thread may ask at
# any moment. A request that comes while the vCPU is between two runs can be lost inside Unicorn, so
# it is repeated until `run` has seen vm.kick.

cdef extern from "pthread.h" nogil:
    ctypedef struct pthread_t:
        pass
    ctypedef struct pthread_mutex_t:
        pass
    ctypedef struct pthread_cond_t:
        pass
    ctypedef struct pthread_condattr_t:
        pass
    int pthread_create(pthread_t *thread, void *attr, void *(*start)(void *) noexcept nogil,
                       void *arg)
    int pthread_join(pthread_t thread, void **result)
    int pthread_mutex_init(pthread_mutex_t *mutex, void *attr)
    int pthread_mutex_lock(pthread_mutex_t *mutex)
    int pthread_mutex_unlock(pthread_mutex_t *mutex)
    int pthread_condattr_init(pthread_condattr_t *attr)
    int pthread_condattr_setclock(pthread_condattr_t *attr, int clock)
    int pthread_cond_init(pthread_cond_t *cond, pthread_condattr_t *attr)
    int pthread_cond_wait(pthread_cond_t *cond, pthread_mutex_t *mutex)
    int pthread_cond_timedwait(pthread_cond_t *cond, pthread_mutex_t *mutex, timespec *until)
    int pthread_cond_signal(pthread_cond_t *cond)
    int pthread_cond_broadcast(pthread_cond_t *cond)

cdef uint64_t NEVER = ~<uint64_t>0
cdef uint64_t RETRY_NS = 100000

cdef struct Kicker:
    pthread_t thread
    pthread_mutex_t lock
    pthread_cond_t changed      # the deadline moved earlier, or the kicker must end
    pthread_cond_t woken        # for a vCPU that waits in HLT
    uint64_t deadline           # host nanoseconds
    int running
    int quit
    int asynchronous            # 0: stops come from the block hook, never from this thread
    Vm *vm

cdef void until(timespec *ts, uint64_t host) noexcept nogil:
    ts.tv_sec = <long>(host // 1000000000)
    ts.tv_nsec = <long>(host % 1000000000)

cdef void *kicker_main(void *arg) noexcept nogil:
    cdef Kicker *k = <Kicker *>arg
    cdef timespec ts
    pthread_mutex_lock(&k.lock)
    while not k.quit:
        if k.deadline == NEVER:
            pthread_cond_wait(&k.changed, &k.lock)
            continue
        if host_ns() < k.deadline:
            until(&ts, k.deadline)
            pthread_cond_timedwait(&k.changed, &k.lock, &ts)
            continue
        k.vm.kick = 1
        if k.asynchronous and k.running:
            full_barrier()      # vm.kick before the flag: see `rip_is_known`
            stop_cpu(k.vm)
        k.deadline = host_ns() + RETRY_NS if k.running else NEVER
        pthread_cond_broadcast(&k.woken)
    pthread_mutex_unlock(&k.lock)
    return NULL

cdef void kicker_arm(Kicker *k, uint64_t deadline, int running) noexcept nogil:
    """Set the deadline (host ns) and whether the vCPU is executing; wakes the thread if sooner."""
    cdef bint sooner
    pthread_mutex_lock(&k.lock)
    sooner = deadline < k.deadline
    k.deadline = deadline
    k.running = running
    if sooner:
        pthread_cond_signal(&k.changed)
    pthread_mutex_unlock(&k.lock)

cdef void kicker_kick(Kicker *k) noexcept nogil:
    """From any thread: make the vCPU leave `run` or `wait` soon."""
    pthread_mutex_lock(&k.lock)
    k.vm.kick = 1
    k.deadline = host_ns()
    pthread_cond_signal(&k.changed)
    pthread_cond_broadcast(&k.woken)
    pthread_mutex_unlock(&k.lock)
