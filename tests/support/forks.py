"""Forked children of the test's process."""

import os
import select
import signal
import warnings
from collections.abc import Callable

_DEADLINE = 10
"""Seconds until a child that says nothing is taken for stuck."""


def in_child(function: Callable[[], str]) -> str:
    """What `function` gives in a forked child; of an error its class and text."""
    reading, writing = os.pipe()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of a fork beside threads
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
        told, _, _ = select.select([pipe], [], [], _DEADLINE)
        if not told:
            os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        return pipe.read() if told else "stuck"
