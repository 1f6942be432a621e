"""Named points at which a test ends or stops the process; nothing happens unless one is armed."""

import os
import signal
from collections.abc import Callable

from execution_events.errors import SettingsError

VARIABLE = "EXECUTION_EVENTS_TEST_FAIL_POINT"
POINTS = ("fetched", "begun", "offsets_set", "upserted", "commit_sent", "committed", "assigned")

_ACTIONS = {"kill": signal.SIGKILL, "stop": signal.SIGSTOP}


def unarmed(_: str) -> None:
    """Reach a point, and go on."""


def armed(spec: str) -> Callable[[str], None]:
    """What to call at each point so that `spec`, `<name>:<n>:<kill|stop>`, comes true.

    The process signals itself when it reaches the named point for the n-th time.
    """
    name, _, rest = spec.partition(":")
    times, _, action = rest.partition(":")
    if name not in POINTS or not times.isdigit() or action not in _ACTIONS:
        raise SettingsError(f"{VARIABLE}: expected <name>:<n>:<kill|stop>, not {spec!r}")
    left = int(times)

    def reach(point: str) -> None:
        nonlocal left
        if point == name:
            left -= 1
            if left == 0:
                os.kill(os.getpid(), _ACTIONS[action])

    return reach
