"""Pauses between attempts."""

import random


def backoff(attempt: int) -> float:
    """Return the seconds to wait after failure number `attempt`, from 0: up to 5, with jitter."""
    return min(0.1 * float(2 ** min(attempt, 10)), 5) * random.uniform(0.5, 1)  # noqa: S311
