"""Mutants fit the product, rows have unique names, and results stay readable."""

import json
from pathlib import Path

import pytest

from tests.faults import source
from tests.faults.mutants import MUTANTS, Edit, Mutant, failing
from tests.faults.results import Catch, Result, append, episodes, latest, report
from tests.faults.rows import ROWS


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.name)
def test_a_mutant_fits_the_product(mutant: Mutant, tmp_path: Path) -> None:
    copied = source.copy(tmp_path / "services")
    before = copied.digest()
    for edit in mutant.edits:
        edit.apply(copied)
    assert copied.digest() != before


def test_an_edit_that_does_not_fit_is_an_error(tmp_path: Path) -> None:
    copied = source.copy(tmp_path / "services")
    with pytest.raises(ValueError, match="has this 0 times"):
        Edit("errors.py", "no such line", "").apply(copied)


def test_a_mutant_has_either_rows_or_tests() -> None:
    assert all(bool(mutant.rows) != bool(mutant.tests) for mutant in MUTANTS)


async def test_a_failing_test_differs_from_a_test_that_cannot_run(
    tmp_path: Path,
) -> None:
    copied = source.copy(tmp_path / "services")
    edit = Edit("projection/fold.py", "event.count + count", "event.count")
    tests = ("tests/unit/test_fold.py",)
    assert await failing(tests, copied) is None
    edit.apply(copied)
    failure = await failing(tests, copied)
    assert failure is not None
    assert failure[0].startswith("tests/unit/test_fold.py::")
    with pytest.raises(RuntimeError, match="pytest ended with 4"):
        await failing(("tests/unit/no_such_test.py",), copied)


def test_row_names_are_unique() -> None:
    names = [row.name for row in ROWS]
    assert len(set(names)) == len(names)
    assert {name for mutant in MUTANTS for name in mutant.rows} <= set(names)


def test_the_last_result_of_each_seed_counts(tmp_path: Path) -> None:
    file = tmp_path / "results.jsonl"
    failed = Result("poison", 4, "abc", "2026-01-01", lost=1, violations=("event: lost",))
    append(failed, file)
    assert "poison, seed 4" in report(file)
    append(Result("poison", 4, "abd", "2026-01-02", recovery=1.25, records=10), file)
    assert latest(episodes(file))["poison", 4].passed
    assert "poison, seed 4" not in report(file)


def test_the_report_has_current_descriptions_of_mutants(tmp_path: Path) -> None:
    file = tmp_path / "results.jsonl"
    append(Catch("no-pause", "An old text", "scale", 4, "lost", "abc", "2026-01-01"), file)
    append(Catch("removed", "A mutant of old", "scale", 4, "lost", "abc", "2026-01-01"), file)
    lines = report(file, {"no-pause": "A new text"})
    assert "| A new text | scale | 4 | lost |" in lines
    assert "| A mutant of old | scale | 4 | lost |" in lines


def test_old_and_present_names_of_an_outcome_are_counted_together(tmp_path: Path) -> None:
    file = tmp_path / "results.jsonl"
    for seed, outcome in enumerate(("mended", "killed after the repair", "killed in it")):
        evidence: dict[str, object] = {"outcome": outcome}
        append(Result("spool-slow", seed, "abc", "2026-01-01", evidence=evidence), file)
    line = "- spool-slow: killed after the repair: 2, killed during the fault: 1"
    assert line in report(file).splitlines()


def test_old_results_without_evidence_are_readable(tmp_path: Path) -> None:
    file = tmp_path / "results.jsonl"
    old = Result("poison", 4, "abc", "2026-01-01", recovery=1.5, records=10)
    append(old, file)
    entry = json.loads(file.read_text())
    file.write_text(json.dumps({k: entry[k] for k in entry if k not in ("seconds", "evidence")}))
    assert episodes(file) == [old]
