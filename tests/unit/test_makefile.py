"""The Makefile: every listed target exists and parses; nothing is run."""

import os
import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
TARGETS = [
    "help",
    "install",
    "run",
    "test",
    "test-more",
    "faults",
    "faults-full",
    "faults-tools",
    "pooler",
    "mutants",
    "bench",
    "bench-growth",
    "bench-peers",
    "check",
    "prose",
    "references",
    "format",
    "lock",
    "build",
    "release",
    "clean",
]


def make(*arguments: str) -> str:
    # Without the variables of a make that runs the tests.
    environ = {
        name: value
        for name, value in os.environ.items()
        if name not in {"MAKEFLAGS", "MFLAGS", "MAKELEVEL", "ARGS"}
    }
    return subprocess.run(
        ["make", *arguments], cwd=ROOT, env=environ, check=True, capture_output=True, text=True
    ).stdout


def test_help_is_the_default_and_lists_every_target() -> None:
    assert make() == make("help")
    assert re.findall(r"^make (\S+) +\S", make("help"), re.MULTILINE) == TARGETS


@pytest.mark.parametrize("target", TARGETS)
def test_a_target_parses(target: str) -> None:
    assert make("--dry-run", target)


def test_arguments_and_signals_reach_the_command() -> None:
    assert re.search(
        r"^exec \S+/execution-events dev --data-dir \.data --no-demo$",
        make("--dry-run", "run", "ARGS=--no-demo"),
        re.MULTILINE,
    )


def test_the_hooks_of_a_commit_are_the_commands_of_check() -> None:
    text = (ROOT / ".pre-commit-config.yaml").read_text()
    hooks = re.findall(r"^ +entry: (.*)$", text, re.MULTILINE)
    # After those that install, where .venv is not up to date.
    commands = re.findall(r"^(\.venv/bin/\S.*)$", make("--dry-run", "check"), re.MULTILINE)
    assert len(hooks) >= 4
    assert commands[-len(hooks) :] == hooks
