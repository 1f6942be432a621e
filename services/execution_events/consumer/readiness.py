"""Readiness of a consumer: the reasons why records are not stored."""

from collections.abc import Iterable

from execution_events.consumer.assignment import Assignment
from execution_events.consumer.loop import ConsumeLoop


def not_ready_reasons(
    peers: Iterable[str | None],
    assignment: Assignment | None,
    loop: ConsumeLoop | None,
    problem: str,
    stall_timeout: float,
) -> list[str]:
    """Return the reasons, without repetitions; none for a consumer that is ready.

    `peers` are the problems of Kafka and PostgreSQL, and `problem` is the last error of a client
    that is being replaced. A partition is stalled if it has lag and stored nothing for
    `stall_timeout` seconds.
    """
    reasons = [reason for reason in peers if reason is not None]
    if assignment is None or loop is None:
        reasons.append(problem)
    elif not assignment.joined:
        reasons.append("the group has not assigned partitions yet")
    else:
        reasons += _partition_reasons(assignment, loop, stall_timeout)
    return list(dict.fromkeys(reasons))


def _partition_reasons(
    assignment: Assignment, loop: ConsumeLoop, stall_timeout: float
) -> Iterable[str]:
    for partition, error in assignment.halted.items():
        yield f"partition {partition.partition} is halted: {error}"
    for partition in assignment.unseeded():
        unread = f"the stored offset of partition {partition.partition} has not been read yet"
        yield assignment.delayed.get(partition) or loop.problem or unread
    for number, seconds in loop.stalled().items():
        if seconds > stall_timeout:
            error = f": {loop.problem}" if loop.problem is not None else ""
            yield f"partition {number} has lag and has stored nothing for {seconds:.0f} s{error}"
