"""Mutation tests of the fault matrix: each mutant breaks a copy of the product on purpose."""

import asyncio
import random
import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.faults.results import Catch, Result, today
from tests.faults.rows import row
from tests.faults.runner import Planned, run_all, snapshot
from tests.faults.source import Source

_ROUNDS = 3
"""Runs of a mutant's rows, each with a new seed."""
_ROOT = Path(__file__).parents[2]
_PASSED, _FAILED = 0, 1
"""Exit codes of pytest; any other says nothing about the product."""
_FAILURE = re.compile(r"^(?:FAILED|ERROR) (\S+)(?: - (.*))?$", re.M)


@dataclass(frozen=True)
class Edit:
    """A change of one file, in which `old` must occur exactly once."""

    file: str
    old: str
    new: str

    def apply(self, source: Source) -> None:
        """Change the copy; raise ValueError unless `old` occurs exactly once."""
        path = source.path / "execution_events" / self.file
        text = path.read_text()
        if (found := text.count(self.old)) != 1:
            raise ValueError(f"{self.file} has this {found} times, expected once:\n{self.old}")
        path.write_text(text.replace(self.old, self.new))


@dataclass(frozen=True)
class Mutant:
    """A defect, and the rows that must catch it; where no row can, the tests that must."""

    name: str
    description: str
    edits: tuple[Edit, ...]
    rows: tuple[str, ...] = ()
    tests: tuple[str, ...] = ()


MUTANTS = (
    Mutant(
        "no-compare-and-set",
        "The stored offset is set without a comparison",
        (
            Edit(
                "store/queries/progress.sql",
                "        AND progress.epoch = move.epoch\n"
                "        AND progress.next_offset = move.expected\n",
                "",
            ),
        ),
        ("zombie-at-point", "pg-commit-lost", "three-no-coordinator"),
    ),
    Mutant(
        "offsets-outside",
        "The offsets are committed before the rows",
        (
            Edit(
                "store/write/batches.py",
                "        async with self._session() as connection, connection.transaction():\n"
                "            with _terminated_on_timeout(connection):\n"
                "                await progress.move_offsets(\n"
                "                    connection, self._topic, batch.moves, batch.fingerprints()\n"
                "                )\n",
                "        async with self._session() as connection:\n"
                "            await progress.move_offsets(\n"
                "                connection, self._topic, batch.moves, batch.fingerprints()\n"
                "            )\n"
                "        async with self._session() as connection, connection.transaction():\n"
                "            with _terminated_on_timeout(connection):\n",
            ),
        ),
        ("kill-offsets-set",),
    ),
    Mutant(
        "states-outside",
        "Actions are updated outside the transaction of their events",
        (
            Edit(
                "store/write/states.py",
                '        await connection.execute(_SQL["change_actions"],',
                '        other = await asyncpg.connect(__import__("os").environ'
                '["EXECUTION_EVENTS_DATABASE_URL"])\n'
                '        await other.execute(_SQL["change_actions"],',
            ),
        ),
        ("kill-upserted",),
    ),
    Mutant(
        "rates-outside",
        "Records are added to the rates after the transaction that stores them",
        (
            Edit(
                "store/write/batches.py",
                "                await add_rates(connection, self._topic, projection.rates)\n",
                "        async with self._session() as connection:\n"
                "            await add_rates(connection, self._topic, projection.rates)\n",
            ),
        ),
        ("kill-committed",),
    ),
    Mutant(
        "stale-memory",
        "An execution in a writer's memory is used after another writer has changed it",
        (
            Edit(
                "store/write/known.py",
                "            if known.revision == previous:\n",
                "            if previous is not None:\n",
            ),
        ),
        tests=(
            "tests/integration/test_kept_states.py::test_random_histories_keep_states",
            "tests/integration/test_concurrent_writers.py",
        ),
    ),
    Mutant(
        "reset-to-latest",
        "A consumer continues at the log's end after an offset out of range",
        (
            Edit(
                "kafka/consumer.py",
                'auto_offset_reset="none"',
                'auto_offset_reset="latest"',
            ),
        ),
        ("log-deleted",),
    ),
    Mutant(
        "swallowed-error",
        "An SQL error is swallowed inside the transaction",
        (
            Edit(
                "store/write/batches.py",
                "                with refused_rows():\n",
                "                executions = {}\n"
                '                with __import__("contextlib").suppress(asyncpg.PostgresError):\n',
            ),
        ),
        ("pg-deadlock", "pg-disk-full"),
    ),
    Mutant(
        "no-pause",
        "Newly assigned partitions are not paused",
        (
            Edit(
                "consumer/assignment.py",
                "            self._client.seek(partition, 0)\n"
                "            self._client.pause(partition)\n",
                "            self._client.seek(partition, 0)\n",
            ),
        ),
        # Only seeded partitions have positions, so no count depends on it.
        (),
        tests=(
            "tests/unit/test_assignment.py"
            "::test_assigned_partitions_are_paused_until_they_are_seeded",
        ),
    ),
    Mutant(
        "fail-open",
        "Positions survive a rebalance, and newly assigned partitions are not paused",
        (
            Edit(
                "consumer/assignment.py",
                "            self._client.seek(partition, 0)\n"
                "            self._client.pause(partition)\n",
                "            self._client.seek(partition, 0)\n",
            ),
            Edit(
                "consumer/assignment.py",
                "        self.positions.clear()\n        self.epochs.clear()\n",
                "",
            ),
        ),
        ("scale", "zombie", "three-controller"),
    ),
    Mutant(
        "refused-watermark",
        "A refused record does not move its source's watermark",
        (
            Edit(
                "projection/batch.py",
                "            moved[key] = sequence\n",
                "            if isinstance(outcome, Occurrence):\n"
                "                moved[key] = sequence\n",
            ),
        ),
        ("poison",),
    ),
    Mutant(
        "read-uncommitted",
        "Records of aborted transactions are read",
        (
            Edit(
                "kafka/consumer.py",
                'isolation_level="read_committed"',
                'isolation_level="read_uncommitted"',
            ),
        ),
        ("transactions",),
    ),
    Mutant(
        "no-fingerprint",
        "The last stored record is not compared with the log",
        (
            Edit(
                "consumer/log_check.py",
                "    if stored.last is not None and stored.last.offset >= log.begin"
                " and log.last != stored.last:\n"
                '        return f"the record at offset {stored.last.offset} is not the one that was'
                ' stored"\n',
                "",
            ),
        ),
        ("topic-recreated",),
    ),
    Mutant(
        "unsynced-spool",
        "A spool's transactions are not synced to disk",
        (Edit("publisher/spool/queries.py", '"synchronous = FULL"', '"synchronous = OFF"'),),
        ("spool-hung", "spool-slow"),
    ),
    Mutant(
        "spool-in-loop",
        "A spool is written on the event loop's thread",
        (
            Edit(
                "publisher/delivery/spooled.py",
                "done = asyncio.get_running_loop().run_in_executor(self._thread, call)\n",
                "done = asyncio.get_running_loop().create_future()\n"
                "        done.set_result(call())\n",
            ),
        ),
        ("spool-slow", "spool-hung"),
    ),
    Mutant(
        "no-hold",
        "A running worker sends records again that it first attempted long ago",
        (
            Edit(
                "publisher/delivery/sender.py",
                "            if self._expire():\n",
                "            if False:\n",
            ),
        ),
        ("clock-later",),
    ),
    Mutant(
        "overlapping-halves",
        "The first half of a batch moves its partition to the end of the whole batch",
        (
            Edit(
                "store/write/batches.py",
                "whole._replace(next=first.offset)",
                "whole",
            ),
        ),
        tests=("tests/integration/test_consumer.py", "tests/unit/test_consume_loop.py"),
    ),
    Mutant(
        "no-generation",
        "A batch of an earlier generation is stored, and its offsets count for the current one",
        (
            Edit(
                "consumer/loop.py",
                "        if fetched.generation != self._assignment.generation:\n",
                "        if False:\n",
            ),
            Edit(
                "consumer/loop.py",
                "        while left and fetched.generation == self._assignment.generation:\n",
                "        while left:\n",
            ),
            Edit(
                "consumer/loop.py",
                "        if generation == self._assignment.generation:\n"
                "            for partition in self._partitions(batch):\n",
                "        if True:\n            for partition in self._partitions(batch):\n",
            ),
        ),
        tests=(
            "tests/integration/test_consumer_machine.py"
            "::test_a_batch_of_an_earlier_generation_is_not_stored",
        ),
    ),
    Mutant(
        "no-epoch",
        "The stored offset is compared without the epoch of its log",
        (Edit("store/queries/progress.sql", "        AND progress.epoch = move.epoch\n", ""),),
        ("accept-frozen",),
    ),
    Mutant(
        "believed-offsets",
        "Stored offsets are read only once",
        (Edit("consumer/seeder.py", "        await self._verify_positions()\n", ""),),
        ("pg-failover", "pg-restore"),
    ),
    Mutant(
        "any-schema",
        "A batch is stored on a schema that excludes this version",
        (
            Edit(
                "store/write/progress.py",
                "        require_version(compatible_from)\n",
                "        pass\n",
            ),
        ),
        tests=(
            "tests/integration/test_migrate.py"
            "::test_no_batch_is_stored_after_an_incompatible_migration",
        ),
    ),
    Mutant(
        "waiting-for-locks",
        "A batch waits for sessions that lock its partitions",
        (
            Edit(
                "store/queries/progress.sql",
                "    FOR UPDATE SKIP LOCKED\n),\nmoved AS (\n",
                "    FOR UPDATE\n),\nmoved AS (\n",
            ),
        ),
        ("host-gone",),
    ),
    Mutant(
        "patience-without-end",
        "The session of a frozen consumer is never ended",
        (
            Edit(
                "consumer/seeder.py",
                "        if late and (ended := await self._writer.end_lock_holders(late)):\n",
                "        if ended := []:\n",
            ),
        ),
        tests=(
            "tests/integration/test_partition_upsets.py"
            "::test_the_session_of_a_consumer_frozen_inside_copy_is_ended",
        ),
    ),
    Mutant(
        "unlocked-letter",
        "A dead letter is not locked while it is retried",
        (
            Edit(
                "store/queries/dead_letters.sql",
                "WHERE id = $1 AND state = 'open'\nFOR UPDATE\n",
                "WHERE id = $1 AND state = 'open'\n",
            ),
        ),
        tests=(
            "tests/integration/test_dead_letters.py::test_concurrent_retries_count_once",
            "tests/integration/test_dead_letters.py::test_a_discard_during_a_retry_finds_it_done",
        ),
    ),
    Mutant(
        "unlocked-prune",
        "Executions are not locked while they are pruned",
        (
            Edit(
                "store/queries/prune.sql",
                "ORDER BY execution_id, namespace\nFOR UPDATE OF execution SKIP LOCKED\n",
                "ORDER BY execution_id, namespace\n",
            ),
        ),
        tests=("tests/integration/test_prune.py",),
    ),
)


async def hunt(mutant: Mutant) -> Catch:
    """Run the mutant's rows until an episode catches it; return that episode.

    A mutant with tests runs those instead; they must pass without the mutant.
    """
    print(f"mutant {mutant.name}: {mutant.description}", flush=True)
    with snapshot() as source:
        digest = source.digest()
        if mutant.tests and (failure := await failing(mutant.tests, source)):
            raise RuntimeError(f"{failure[0]} fails without the mutant: {failure[1]}")
        for edit in mutant.edits:
            edit.apply(source)
        if mutant.tests:
            return _catch_by_test(mutant, await failing(mutant.tests, source), digest)
        seeds = [random.randrange(1, 2**31) for _ in range(_ROUNDS)]
        plan = [Planned(row(name), seed) for seed in seeds for name in mutant.rows]
        results = await run_all(source, plan, _discard, until_violation=True)
    for result in results:
        if result.violations and not result.vacuous:
            print(f"  caught by {result.row}", flush=True)
            return _catch(mutant, result, digest)
    print("  NOT CAUGHT", flush=True)
    return _catch(mutant, None, digest)


async def failing(tests: Sequence[str], source: Source) -> tuple[str, str] | None:
    """Return the first of `tests` that fails on `source` and its error, None if all pass.

    Raise RuntimeError if the tests cannot run.
    """
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "pytest", "-x", "-q", "-n0", "-p", "no:cacheprovider", *tests),
        cwd=_ROOT,
        # Wide enough for pytest's summary of a failure.
        env=source.environment() | {"COLUMNS": "400"},
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    output, _ = await process.communicate()
    if process.returncode == _PASSED:
        return None
    found = _FAILURE.search(output.decode())
    if process.returncode != _FAILED or found is None:
        raise RuntimeError(f"pytest ended with {process.returncode}:\n{output.decode()}")
    return found[1], found[2] or ""


def _catch_by_test(mutant: Mutant, failure: tuple[str, str] | None, digest: str) -> Catch:
    test, symptom = failure or (None, "")
    print("  NOT CAUGHT" if test is None else f"  caught by {test}", flush=True)
    return Catch(mutant.name, mutant.description, test, None, symptom, digest, today())


def _catch(mutant: Mutant, result: Result | None, digest: str) -> Catch:
    return Catch(
        mutant.name,
        mutant.description,
        result.row if result else None,
        result.seed if result else None,
        _symptom(result) if result else "",
        digest,
        today(),
    )


def _symptom(result: Result) -> str:
    if result.lost or result.doubled:
        return f"{result.lost} events too low, {result.doubled} too high"
    return result.violations[0]


def _discard(_: Result) -> None:
    """Record nothing: a mutant's episodes say nothing about the product."""
