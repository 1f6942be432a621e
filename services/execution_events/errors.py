"""Errors, named by the caller's next action; each docstring states that action."""


class ExecutionEventsError(Exception):
    """The base class of this package's errors."""


class SettingsError(ExecutionEventsError):
    """Correct the named setting; a command exits with 2."""


class RecordRefusedError(ExecutionEventsError):
    """Store the record as a dead letter: the same bytes are always refused.

    `reason` is one of `wire.REASONS`; `detail` explains it to an operator and holds field names
    but no content of the record.
    """

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(f"{reason}: {detail}")
        self.reason = reason
        self.detail = detail


class RetryableError(ExecutionEventsError):
    """Try again later: PostgreSQL or Kafka is unavailable.

    `cause` is a label for metrics: an SQLSTATE or the class name of the library's error.
    """

    def __init__(self, text: str, cause: str = "other") -> None:
        super().__init__(text)
        self.cause = cause


class MisconfiguredError(RetryableError):
    """Correct the setting, the login or the privilege that the message names.

    A command, and a service at its start, exits with 2. A service that has run tries again.
    """


class BatchTooSlowError(RetryableError):
    """Try again with half of the batch: a statement exceeded its timeout."""


class BatchRefusedError(ExecutionEventsError):
    """Store the batch in halves; store a single record as a dead letter.

    `detail` names the database constraint and holds no content of the record.
    """

    def __init__(self, detail: str) -> None:
        super().__init__(detail)
        self.detail = detail


class FencedError(ExecutionEventsError):
    """Drop the batch: another consumer has moved the offset. Nothing was stored."""


class PartitionsLockedError(ExecutionEventsError):
    """Store the batch without these partitions and retry them: other sessions hold their locks.

    Nothing was stored.
    """

    def __init__(self, partitions: frozenset[int]) -> None:
        super().__init__(f"other sessions have locked partitions {sorted(partitions)}")
        self.partitions = partitions


class HaltError(ExecutionEventsError):
    """Stop and alert the operator: continuing could lose or double-count occurrences."""


class SpoolFullError(RetryableError):
    """Publish the event again later: the spool or its disk is full. The event was not stored."""


class SpoolCorruptError(ExecutionEventsError):
    """Set the file aside, continue with a new one and alert the operator; never delete it."""


class EventError(ExecutionEventsError):
    """Correct the event: every consumer would refuse it.

    The message names the field and holds no content of the event.
    """
