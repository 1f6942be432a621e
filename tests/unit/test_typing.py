"""The public API is typed: correct uses pass mypy, wrong ones fail; all names exist."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

import execution_events

ROOT = Path(__file__).parents[2]
API = ROOT / "tests" / "typing" / "api.py"
IGNORE = re.compile(r"  # type: ignore\[([a-z, -]+)\]")


def mypy(path: Path) -> list[str]:
    """Return the lines that mypy prints for a module."""
    checked = subprocess.run(
        [sys.executable, "-m", "mypy", "--no-error-summary", "--hide-error-context", path],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert checked.stderr == ""
    return checked.stdout.splitlines()


def test_correct_uses_pass_and_wrong_ones_fail() -> None:
    assert mypy(API) == []


def test_every_wrong_use_has_its_error(tmp_path: Path) -> None:
    source = API.read_text()
    bare = tmp_path / "bare_api.py"
    bare.write_text(IGNORE.sub("", source))
    expected = {
        (number, code)
        for number, line in enumerate(source.splitlines(), start=1)
        for ignored in IGNORE.findall(line)
        for code in ignored.split(", ")
    }
    found = re.findall(r":(\d+): error: .*\[([a-z-]+)\]$", "\n".join(mypy(bare)), re.MULTILINE)
    assert {(int(line), code) for line, code in found} == expected
    assert len({line for line, _ in expected}) > 10


def test_the_package_exports_every_name_in_its_list() -> None:
    for name in execution_events.__all__:
        assert getattr(execution_events, name) is not None
    assert set(execution_events.__all__) <= set(dir(execution_events))
    assert sorted(execution_events._MODULES) == sorted(execution_events.__all__)  # type: ignore[attr-defined]
    with pytest.raises(AttributeError, match="has no attribute 'Unknown'"):
        execution_events.Unknown  # type: ignore[attr-defined]  # noqa: B018


def test_importing_the_package_imports_no_submodule() -> None:
    program = (
        "import sys, execution_events\n"
        "ours = [name for name in sys.modules if name.startswith('execution_events')]\n"
        "assert ours == ['execution_events'], ours\n"
        "from execution_events import NORMAL, RetryableError\n"
        "assert 'aiokafka' not in sys.modules\n"
        "from execution_events import *\n"
        "assert Publisher.__module__ == 'execution_events.publisher.publisher'\n"
    )
    subprocess.run([sys.executable, "-c", program], check=True)
