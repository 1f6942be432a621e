"""The locks in infra/locks are complete, hashed and satisfy pyproject.toml."""

import re
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[2]
LOCKS = ROOT / "infra" / "locks"
PYPROJECT: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text())
PROJECT = PYPROJECT["project"]
EXTRAS = PROJECT["optional-dependencies"]
BUILD = PYPROJECT["build-system"]["requires"]

WANTED: dict[str, list[str]] = {
    "base": PROJECT["dependencies"],
    "services": PROJECT["dependencies"] + EXTRAS["consumer"] + EXTRAS["reader"],
    "build": BUILD,
    "all": PROJECT["dependencies"] + EXTRAS["all"] + PYPROJECT["dependency-groups"]["dev"] + BUILD,
}


def entries(lock: str) -> list[str]:
    """Return the requirements of a lock with their hashes."""
    text = (LOCKS / f"{lock}.txt").read_text().replace("\\\n", " ")
    return [line for line in text.splitlines() if line and not line.startswith("#")]


def versions(lock: str) -> dict[str, str]:
    """Return the version of each distribution of a lock."""
    pins = [entry.split()[0].split("==") for entry in entries(lock)]
    assert len({name for name, _ in pins}) == len(pins)
    return {canonicalize_name(name): version for name, version in pins}


def flat(requirements: list[str]) -> Iterator[Requirement]:
    """Yield the requirements, with the project's own extras expanded."""
    for requirement in map(Requirement, requirements):
        if requirement.name == PROJECT["name"]:
            for extra in requirement.extras:
                yield from flat(EXTRAS[extra])
        else:
            yield requirement


def test_every_lock_is_known() -> None:
    assert {path.stem for path in LOCKS.glob("*.txt")} == set(WANTED)


@pytest.mark.parametrize("lock", WANTED)
def test_every_requirement_is_pinned_and_hashed(lock: str) -> None:
    pinned = re.compile(r"[a-z0-9-]+==[\w.]+( ; [^#@]+?)?( +--hash=sha256:[0-9a-f]{64})+")
    assert [entry for entry in entries(lock) if not pinned.fullmatch(entry)] == []


@pytest.mark.parametrize("lock", WANTED)
def test_no_lock_names_an_index(lock: str) -> None:
    assert not re.search(r"://|index|find-links", (LOCKS / f"{lock}.txt").read_text())


@pytest.mark.parametrize("lock", WANTED)
def test_a_lock_satisfies_pyproject(lock: str) -> None:
    locked = versions(lock)
    wanted = list(flat(WANTED[lock]))
    assert wanted
    for requirement in wanted:
        assert requirement.specifier.contains(locked[canonicalize_name(requirement.name)]), (
            requirement
        )


@pytest.mark.parametrize("lock", WANTED)
def test_the_locks_agree(lock: str) -> None:
    assert versions(lock).items() <= versions("all").items()


def test_workers_install_few_distributions() -> None:
    """At most 8 with the project itself, including those of one platform only."""
    assert set(versions("base")) == {
        "aiokafka",
        "async-timeout",
        "cramjam",
        "msgspec",
        "packaging",
        "typing-extensions",
    }
    assert len(versions("base")) + 1 <= 8
