"""Forked children of the test's process."""

import os
import select
import signal
import warnings
from collections.abc import Callable

_DEADLINE = 10
"""Seconds without a result after which a child counts as stuck."""


def in_child(function: Callable[[], str]) -> str:
    """Return the result of `function` in a forked child, or the class and text of its error."""
    reading, writing = os.pipe()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # about forking a process with threads
        child = os.fork()
    if child == 0:
        try:
            os.write(writing, function().encode())
        except BaseException as error:
            os.write(writing, f"{type(error).__name__}: {error}".encode())
        finally:
            os._exit(0)
    os.close(writing)
    with os.fdopen(reading) as pipe:
        ready, _, _ = select.select([pipe], [], [], _DEADLINE)
        if not ready:
            os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        return pipe.read() if ready else "stuck"
