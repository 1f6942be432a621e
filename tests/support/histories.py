"""Random histories of few executions, events, actions and moments, so that they meet and tie."""

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from random import Random

from execution_events.events import Occurrence

BEGUN = datetime(2018, 8, 20, 6, 41, 44, 123456, tzinfo=UTC)
_CODES = (
    *("ActionStart", "ActionRetry", "SuccessfulFinish"),
    *("ActionFailed", "ActionCancelled", "ActionTimeout", "PullImage"),
)
_MESSAGES = ("", "失败 ## b of o failed: 0x1F", "坏##pod e-1 lost: exit code 12345", "坏")


def occurrence(rng: Random, history: int = 0) -> Occurrence:
    """Return an occurrence of any order in time; its name may belong to another action.

    Histories of different numbers share no namespace, and so no execution.
    """
    first, last = sorted(BEGUN + timedelta(seconds=rng.randrange(5)) for _ in range(2))
    code = rng.choice(_CODES)
    return Occurrence(
        execution_id=rng.choice(("e-1", "e-1", "e-2")),
        namespace=rng.choice(("m", "n", "n", "n")) + str(history or ""),
        name=rng.choice(("o.1", "o.2", "o.3", "o.4", "\uffee.1", "😀.1")),
        object_name=rng.choice(("o", "o", "o", "p")),
        object_namespace="n",
        reason=rng.choice((f"开始##{code}", f"## {code} ", code)),
        message=rng.choice(_MESSAGES),
        first_timestamp=first,
        last_timestamp=last,
        count=rng.choice((1, 1, 2, 3, 2**31 - 1)),
        type=rng.choice(("Normal", "Warning")),
        elem_type=rng.choice(("t", "t", "u")),
        elem_id=rng.choice("ab"),
        action_name=rng.choice("ab"),
    )


def batches(rng: Random, most: int = 5, histories: int = 1) -> Iterator[list[Occurrence]]:
    """Yield the batches of concurrent histories: at most so many, each of a few occurrences."""
    for _ in range(rng.randint(1, most)):
        batch = [
            occurrence(rng, history)
            for history in range(histories)
            for _ in range(rng.randint(1, 6))
        ]
        rng.shuffle(batch)
        yield batch
