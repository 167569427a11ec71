# SPDX-License-Identifier: GPL-2.0-or-later
"""Descriptors of the host that wake the machine."""

from __future__ import annotations

import os
import queue

from bt.machine.watch import GONE, READ, WRITE, HostWatcher


def test_a_watch_fires_once_for_each_time_it_is_armed():
    posted: queue.SimpleQueue = queue.SimpleQueue()
    watcher = HostWatcher(posted.put)
    ours, theirs = os.pipe()
    fired: list[int] = []
    watch = watcher.watch(ours, fired.append)
    os.write(theirs, b"x")
    assert posted.empty()
    for count in range(1, 4):
        watch.arm(READ)
        posted.get(timeout=10)()
        assert fired == [READ] * count and posted.empty()
    os.read(ours, 1)
    watch.arm(0)
    os.close(theirs)
    posted.get(timeout=10)()
    assert fired[-1] & GONE
    watch.stop()
    watch.arm(READ)
    watch.stop()
    os.close(ours)
    watcher.close()
    assert posted.empty()


def test_what_was_posted_before_a_stop_does_nothing():
    posted: queue.SimpleQueue = queue.SimpleQueue()
    watcher = HostWatcher(posted.put)
    ours, theirs = os.pipe()
    fired: list[int] = []
    watch = watcher.watch(theirs, fired.append)
    watch.arm(WRITE)
    call = posted.get(timeout=10)
    watch.stop()
    call()
    assert fired == []
    watcher.close()
    os.close(ours)
    os.close(theirs)


def test_no_watch_no_thread():
    watcher = HostWatcher(lambda call: None)
    assert watcher._thread is None
    watcher.close()
