"""Exponential back-off with jitter."""

import random


def backoff(attempt: int, first: float = 0.1, limit: float = 5.0) -> float:
    """Return the seconds to wait after failed attempt number `attempt`, counted from 0.

    The pause doubles from `first` up to `limit`. Jitter cuts off up to half of it, so that clients
    that failed together do not retry together.
    """
    return min(first * 2.0 ** min(attempt, 30), limit) * random.uniform(0.5, 1)  # noqa: S311
