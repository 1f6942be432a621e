"""A check that cannot fail proves nothing: the product is broken on purpose, in a copy."""

import random
from dataclasses import dataclass

from tests.faults.results import Catch, Result, today
from tests.faults.rows import row
from tests.faults.runner import Planned, run_all, snapshot
from tests.faults.source import Source

_ROUNDS = 3
"""How often the rows of a mutant are tried, each time with another seed."""


@dataclass(frozen=True)
class Edit:
    """One change of one file; `old` stands in it exactly once."""

    file: str
    old: str
    new: str

    def apply(self, source: Source) -> None:
        """Change the copy; ValueError when the product is not what the edit was written for."""
        path = source.path / "execution_events" / self.file
        text = path.read_text()
        if (found := text.count(self.old)) != 1:
            raise ValueError(f"{self.file} holds this {found} times, not once:\n{self.old}")
        path.write_text(text.replace(self.old, self.new))


@dataclass(frozen=True)
class Mutant:
    """One mistake, and the rows that must notice it."""

    name: str
    description: str
    edits: tuple[Edit, ...]
    rows: tuple[str, ...]


MUTANTS = (
    Mutant(
        "no-compare-and-set",
        "The stored offset is set without comparing it",
        (
            Edit(
                "store/queries/batches.sql",
                "    AND progress.partition = move.partition\n"
                "    AND progress.next_offset = move.expected\n",
                "    AND progress.partition = move.partition\n",
            ),
        ),
        ("zombie-at-point", "pg-commit-lost"),
    ),
    Mutant(
        "offsets-outside",
        "The offsets are moved before the transaction of the rows",
        (
            Edit(
                "store/batches.py",
                "                async with connection.transaction():\n"
                '                    self._reach("begun")\n'
                "                    await self._move_offsets(connection, batch)\n",
                "                await self._move_offsets(connection, batch)\n"
                "                async with connection.transaction():\n"
                '                    self._reach("begun")\n',
            ),
        ),
        ("kill-offsets-set",),
    ),
    Mutant(
        "reset-to-latest",
        "An offset out of range continues at the log's end",
        (
            Edit(
                "consumer/service.py",
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
                "store/batches.py",
                "                    with refused_rows():\n",
                '                    with __import__("contextlib").suppress('
                "asyncpg.PostgresError):\n",
            ),
        ),
        ("pg-deadlock", "pg-disk-full"),
    ),
    Mutant(
        "no-pause",
        "Partitions are not paused when they are assigned",
        (
            Edit(
                "consumer/assignment.py",
                "            self._client.seek(partition, 0)\n"
                "            self._client.pause(partition)\n",
                "            self._client.seek(partition, 0)\n",
            ),
        ),
        ("retention", "scale", "pg-down"),
    ),
    Mutant(
        "fail-open",
        "Positions of an earlier generation stay valid, and partitions are not paused",
        (
            Edit(
                "consumer/assignment.py",
                "            self._client.seek(partition, 0)\n"
                "            self._client.pause(partition)\n",
                "            self._client.seek(partition, 0)\n",
            ),
            Edit(
                "consumer/assignment.py",
                "        self.assigned = set(assigned)\n        self.positions.clear()\n",
                "        self.assigned = set(assigned)\n",
            ),
        ),
        ("scale", "zombie"),
    ),
    Mutant(
        "refused-watermark",
        "A refused record leaves its source's watermark where it was",
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
                "consumer/service.py",
                'isolation_level="read_committed"',
                'isolation_level="read_uncommitted"',
            ),
        ),
        ("transactions",),
    ),
)


async def hunt(mutant: Mutant) -> Catch:
    """Run the mutant's rows until one notices; the first episode that does is in the result."""
    print(f"mutant {mutant.name}: {mutant.description}", flush=True)
    with snapshot() as source:
        digest = source.digest()
        for edit in mutant.edits:
            edit.apply(source)
        seeds = [random.randrange(1, 2**31) for _ in range(_ROUNDS)]
        plan = [Planned(row(name), seed) for seed in seeds for name in mutant.rows]
        results = await run_all(source, plan, _forget, until_violation=True)
    for result in results:
        if result.violations and not result.vacuous:
            print(f"  caught by {result.row}", flush=True)
            return _catch(mutant, result, digest)
    print("  NOT CAUGHT", flush=True)
    return _catch(mutant, None, digest)


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


def _forget(_: Result) -> None:
    """The mutants' episodes are none of the product's."""
