"""The release target: what it refuses, and what it builds and tags, in a repository of its own."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FILES = (
    "pyproject.toml",
    "README.md",
    "CHANGELOG.md",
    "LICENSE",
    ".gitignore",
    "infra/release.py",
    "schemas/openapi.json",
)


def git(repository: Path, *arguments: str) -> str:
    identity = ("-c", "user.name=tests", "-c", "user.email=tests@example.org")
    return subprocess.run(
        ["git", *identity, *arguments], cwd=repository, check=True, capture_output=True, text=True
    ).stdout


@pytest.fixture
def repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A repository with what a release needs, committed."""
    repository = tmp_path / "repository"
    for file in FILES:
        (repository / file).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / file, repository / file)
    shutil.copytree(
        ROOT / "services", repository / "services", ignore=shutil.ignore_patterns("__pycache__")
    )
    for variable in ("GIT_AUTHOR", "GIT_COMMITTER"):
        monkeypatch.setenv(f"{variable}_NAME", "tests")
        monkeypatch.setenv(f"{variable}_EMAIL", "tests@example.org")
    git(repository, "init", "--quiet")
    git(repository, "add", "--all")
    git(repository, "commit", "--quiet", "--message", "all")
    return repository


def release(repository: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, repository / "infra" / "release.py", *arguments],
        capture_output=True,
        text=True,
        check=False,
    )


def change(repository: Path, file: str, old: str, new: str) -> None:
    text = (repository / file).read_text()
    assert old in text
    (repository / file).write_text(text.replace(old, new, 1))
    git(repository, "commit", "--quiet", "--all", "--message", "change")


def test_a_dry_run_builds_and_checks_and_tags_nothing(repository: Path) -> None:
    ended = release(repository, "--dry-run")
    assert (ended.returncode, ended.stderr) == (0, "")
    files = ["execution_events-0.1.0.tar.gz", "execution_events-0.1.0-py3-none-any.whl"]
    assert ended.stdout.splitlines() == [
        *(f"built and checked: dist/{file}" for file in files),
        "dry run: v0.1.0 was not tagged",
    ]
    assert {path.name for path in (repository / "dist").iterdir() if path.is_file()} >= set(files)
    assert git(repository, "tag") == ""


def test_a_release_is_tagged_once(repository: Path) -> None:
    change(repository, "CHANGELOG.md", "- Unreleased", "- 2026-11-26")
    assert release(repository).returncode == 0
    assert git(repository, "tag") == "v0.1.0\n"
    ended = release(repository)
    assert (ended.returncode, ended.stderr) == (
        1,
        "release: v0.1.0 is tagged already: raise the version\n",
    )


def test_a_version_that_the_changelog_lacks_is_refused(repository: Path) -> None:
    change(repository, "pyproject.toml", 'version = "0.1.0"', 'version = "0.2.0"')
    ended = release(repository, "--dry-run")
    assert ended.returncode == 1
    assert "version 0.2.0" in ended.stderr
    assert "CHANGELOG.md is 0.1.0" in ended.stderr


def test_a_version_without_a_date_is_refused(repository: Path) -> None:
    ended = release(repository)
    assert (ended.returncode, git(repository, "tag")) == (1, "")
    assert "instead of Unreleased" in ended.stderr


def test_a_tree_with_changes_is_refused(repository: Path) -> None:
    (repository / "new").touch()
    ended = release(repository, "--dry-run")
    assert ended.returncode == 1
    assert "?? new" in ended.stderr


def test_metadata_without_urls_are_refused(repository: Path) -> None:
    change(repository, "pyproject.toml", "[project.urls]", "[tool.none]")
    ended = release(repository, "--dry-run")
    assert ended.returncode == 1
    assert "Project-URL is missing" in ended.stderr
