"""Settled and quiet are measured in the time under watch."""

import math

from execution_events.tail.ending import Endings


def test_settled_is_the_time_without_a_running_element() -> None:
    endings = Endings(30, None)
    endings.resume(0)
    assert endings.next_due == math.inf
    endings.changed(1, has_ended=False)
    assert endings.reached(100) is None
    endings.changed(100, has_ended=True)
    assert endings.next_due == 130
    # Another change that leaves none running does not restart it.
    endings.changed(120, has_ended=True)
    assert endings.reached(129.9) is None
    assert endings.reached(130) == "settled"
    endings.changed(130, has_ended=False)
    endings.changed(131, has_ended=True)
    assert endings.next_due == 161


def test_quiet_is_the_time_without_a_change() -> None:
    endings = Endings(None, 300)
    endings.resume(0)
    assert endings.reached(299) is None
    endings.changed(299, has_ended=False)
    assert endings.next_due == 599
    assert endings.reached(599) == "quiet"


def test_an_execution_without_an_end_never_settles() -> None:
    endings = Endings(30, 300)
    endings.resume(0)
    assert endings.reached(299) is None
    assert endings.reached(300) == "quiet"


def test_time_without_a_connection_does_not_count() -> None:
    endings = Endings(30, 300)
    assert endings.next_due == math.inf
    endings.resume(0)
    endings.changed(0, has_ended=True)
    endings.pause(20)
    assert endings.next_due == math.inf
    assert endings.reached(1000) is None
    endings.pause(1001)
    endings.resume(2000)
    endings.resume(2001)
    assert endings.next_due == 2010
    endings.restart(2005)
    assert endings.next_due == 2035


def test_without_limits_nothing_ends() -> None:
    endings = Endings(None, None)
    endings.resume(0)
    endings.changed(0, has_ended=True)
    assert endings.next_due == math.inf
    assert endings.reached(10**9) is None
