# SPDX-License-Identifier: GPL-2.0-or-later
from bt.machine.timers import TimerQueue


class Clock:
    ns = 0

    def now_ns(self):
        return self.ns


def queue():
    clock = Clock()
    return clock, TimerQueue(clock), []


def test_fires_in_order_of_deadline_then_of_making():
    clock, timers, log = queue()
    for name, at in (("c", 30), ("a1", 10), ("b", 20), ("a2", 10), ("late", 31)):
        timers.at(at, lambda name=name: log.append(name))
    assert timers.next_deadline() == 10
    clock.ns = 30
    timers.run_due()
    assert log == ["a1", "a2", "b", "c"]
    assert timers.next_deadline() == 31


def test_not_before_its_deadline():
    clock, timers, log = queue()
    timers.at(10, lambda: log.append(1))
    clock.ns = 9
    timers.run_due()
    assert log == []
    clock.ns = 10
    timers.run_due()
    timers.run_due()
    assert log == [1]
    assert timers.next_deadline() is None


def test_cancelled_timer_neither_fires_nor_shows():
    clock, timers, log = queue()
    first = timers.at(10, lambda: log.append("first"))
    timers.at(20, lambda: log.append("second"))
    first.cancel()
    first.cancel()
    assert timers.next_deadline() == 20
    clock.ns = 50
    timers.run_due()
    assert log == ["second"]
    first.cancel()


def test_one_due_timer_may_cancel_another():
    clock, timers, log = queue()
    victims = []
    timers.at(1, lambda: victims[0].cancel())
    victims.append(timers.at(2, lambda: log.append("victim")))
    clock.ns = 5
    timers.run_due()
    assert log == []
    assert timers.next_deadline() is None


def test_a_timer_that_rearms_itself_in_the_past_waits_for_the_next_call():
    clock, timers, log = queue()

    def again():
        log.append(clock.ns)
        timers.at(0, again)

    timers.at(0, again)
    timers.run_due()
    assert log == [0]
    timers.run_due()
    assert log == [0, 0]


def test_dead_timers_do_not_pile_up():
    clock, timers, _ = queue()
    keep = timers.at(1 << 60, lambda: None)
    for i in range(10_000):
        timers.at((1 << 50) + i, lambda: None).cancel()
    assert len(timers._heap) < 200
    assert timers.next_deadline() == keep.deadline_ns


def test_run_loop_hears_of_an_earlier_deadline_only():
    _, timers, heard = queue()
    timers.on_earlier = heard.append
    timers.at(100, lambda: None)
    timers.at(200, lambda: None)
    timers.at(50, lambda: None)
    assert heard == [100, 50]
