"""Errors, named by what their receiver must do. The docstring of each is that action."""


class ExecutionEventsError(Exception):
    """The base of all errors of this package."""


class SettingsError(ExecutionEventsError):
    """Correct the named setting; a command exits with 2."""


class RecordRefusedError(ExecutionEventsError):
    """Keep the record as a dead letter; the same bytes will be refused for ever.

    `reason` is one of `wire.REASONS`; `detail` is a sentence for an operator that holds no
    content of the record but field names.
    """

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(f"{reason}: {detail}")
        self.reason = reason
        self.detail = detail


class RetryableError(ExecutionEventsError):
    """Try again later: PostgreSQL or Kafka is away, and nothing is known to be wrong.

    `cause` is a short name for metrics: an SQLSTATE, or the type of the library's error.
    """

    def __init__(self, text: str, cause: str = "other") -> None:
        super().__init__(text)
        self.cause = cause


class BatchTooSlowError(RetryableError):
    """Try again with half of the batch: PostgreSQL's time for one statement was not enough."""


class BatchRefusedError(ExecutionEventsError):
    """Store the halves of the batch; of one record alone: keep it as a dead letter.

    `detail` says which check of the database refused it, and nothing of the record.
    """

    def __init__(self, detail: str) -> None:
        super().__init__(detail)
        self.detail = detail


class FencedError(ExecutionEventsError):
    """Drop the batch: another consumer has moved the offset. Nothing of it was stored."""


class PartitionsLockedError(ExecutionEventsError):
    """Store the batch without these partitions, and try them again: other sessions hold them.

    Nothing of the batch was stored.
    """

    def __init__(self, partitions: frozenset[int]) -> None:
        super().__init__(f"other sessions have locked partitions {sorted(partitions)}")
        self.partitions = partitions


class HaltError(ExecutionEventsError):
    """Stop and tell the operator: going on could lose or double occurrences."""


class SpoolFullError(RetryableError):
    """Publish it again later: there is no room for it until Kafka takes some of what is spooled,
    or until the disk has room again. It was not kept."""


class SpoolCorruptError(ExecutionEventsError):
    """Set the file aside, go on with a new one and tell the operator; never delete it."""


class EventError(ExecutionEventsError):
    """Correct the event: every consumer would refuse it.

    The text names the field and holds nothing of the event's content.
    """
