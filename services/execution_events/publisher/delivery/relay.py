"""The relay of a spool: its records on their way to Kafka."""

from collections.abc import Callable, Sequence

from execution_events import wire
from execution_events.logs import Logger
from execution_events.publisher.delivery.commit import Fetch, Outcomes
from execution_events.publisher.delivery.sender import EVERY_PARTITION, Sender
from execution_events.publisher.event import log_fields
from execution_events.publisher.record import PendingRecord
from execution_events.publisher.spool.spool import Spool
from execution_events.settings import KafkaSettings

_log = Logger(__name__)

_WINDOW = 5_000
"""Limit of the records in memory, fetched and not yet acknowledged; others stay on the disk."""


class Relay:
    """The sender of one spool, and the outcomes that the spool has not stored yet.

    A blocked partition keeps one record in memory; those after it return to the spool, so that the
    window is free for other partitions. `progressed` is called after every outcome.

    With `reassign_partitions`, records of partitions that the topic does not have are assigned to
    others before anything is sent.
    """

    def __init__(
        self,
        settings: KafkaSettings,
        spool: Spool,
        progressed: Callable[[], None],
        *,
        reassign_partitions: bool,
    ) -> None:
        self.spool = spool
        self.sender = Sender(
            settings,
            spool.source,
            acknowledged=self._on_acknowledged,
            refused=self._on_refused,
            expired=self._on_expired,
            blocked=self._on_blocked,
        )
        self.reassign_partitions = reassign_partitions
        self._progressed = progressed
        self._retired = False
        # All records up to this sequence were submitted; the spool advances a moment earlier.
        self._fetched = spool.fetched
        self._acknowledged: list[int] = []
        self._refused: list[tuple[int, str]] = []
        self._expired: list[int] = []
        # By partition, the records that return to the spool.
        self._requeued: dict[int, list[int]] = {}
        # The partitions that the last fetch left out.
        self._skipped: frozenset[int] = frozenset()

    def retire(self) -> None:
        """Send what is in memory and nothing else, because the spool is damaged."""
        self._retired = True

    def may_fetch(self) -> bool:
        """Return whether a commit would fetch records."""
        return (
            (self._fetched < self.spool.last or self._has_unblocked())
            and self.sender.pending <= _WINDOW // 2
            and self.sender.partitions > 0
        )

    def is_delivered(self, last: int) -> bool:
        """Return whether nothing up to sequence `last` remains to be sent."""
        # A blocked partition keeps its first record in the sender.
        oldest = self.sender.oldest
        return (
            self._fetched >= last
            and not self._has_unblocked()
            and (oldest is None or oldest > last)
        )

    def fetch(self, *, sending: bool) -> Fetch:
        """Return a request for as many records as the window admits, for none unless `sending`."""
        partitions = self.sender.partitions
        return Fetch(
            max(0, _WINDOW - self.sender.pending),
            self.sender.partition_of if partitions and sending else None,
            frozenset(self.sender.errors),
            partitions if self.reassign_partitions else 0,
        )

    def submit(self, records: Sequence[PendingRecord], fetch: Fetch) -> None:
        """Send `records`, the result of `fetch`."""
        submit, errors, requeued = self.sender.submit, self.sender.errors, self._requeued
        for record in records:
            partition = record.partition
            # Nothing overtakes a record that returns to the spool.
            if partition in errors or partition in requeued:
                requeued.setdefault(partition, []).append(record.sequence)
            else:
                submit(record)
        self._skipped = fetch.blocked
        self._fetched = self.spool.fetched
        if fetch.partitions:
            self.reassign_partitions = False

    def take_outcomes(self) -> Outcomes:
        """Return the outcomes that the spool has not stored yet, and forget them."""
        outcomes = Outcomes(
            self._acknowledged,
            self._refused,
            self._expired,
            self._requeued,
            dict(self.sender.errors),
        )
        self._acknowledged, self._refused, self._expired, self._requeued = [], [], [], {}
        return outcomes

    def restore_outcomes(self, outcomes: Outcomes) -> None:
        """Put back outcomes whose commit failed."""
        self._acknowledged = outcomes.acknowledged + self._acknowledged
        self._refused = outcomes.refused + self._refused
        self._expired = outcomes.expired + self._expired
        for partition, sequences in outcomes.requeued.items():
            self._requeued[partition] = sequences + self._requeued.get(partition, [])

    def _has_unblocked(self) -> bool:
        """Return whether a partition that works again may have records in the spool."""
        errors = self.sender.errors
        return any(p not in errors for p in (*self._skipped, *self._requeued))

    def _on_acknowledged(
        self, records: Sequence[PendingRecord], partition: int, base_offset: int
    ) -> None:
        if not self._retired:
            self._acknowledged += [record.sequence for record in records]
        self._progressed()

    def _fields(self, record: PendingRecord) -> dict[str, object]:
        occurrence = wire.decode(record.key, record.value, record.created_at)
        return {
            **log_fields(occurrence),
            "path": str(self.spool.path),
            "sequence": record.sequence,
        }

    def _on_refused(self, record: PendingRecord, detail: str) -> None:
        _log.error(
            "event_refused",
            **self._fields(record),
            error=detail,
            next_step="raise the topic's max.message.bytes, then run `execution-events spool drain "
            "--accept-duplicates`",
        )
        if not self._retired:
            self._refused.append((record.sequence, detail))
        self._progressed()

    def _on_expired(self, record: PendingRecord) -> None:
        if self._retired:
            _log.error(
                "event_expired",
                **self._fields(record),
                error="its first attempt was too long ago to send it again",
                next_step="publish it again if its execution lacks it",
            )
        else:
            self._expired.append(record.sequence)
        self._progressed()

    def _on_blocked(self, partition: int) -> None:
        if not self._retired and partition != EVERY_PARTITION:
            withdrawn = self.sender.withdraw(partition)
            self._requeued.setdefault(partition, []).extend(r.sequence for r in withdrawn)
        self._progressed()
