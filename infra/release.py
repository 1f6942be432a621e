"""The release: build, check, tag.

    python infra/release.py [--dry-run]

The tree is clean, its version is the newest heading of CHANGELOG.md and has no tag yet. The sdist
is built, the wheel is built from the sdist, and the metadata of both are checked. Then the commit
is tagged `v<version>`; nothing is pushed or uploaded. With `--dry-run` it is not tagged.
"""

import argparse
import re
import subprocess
import sys
import tarfile
import tempfile
import tomllib
import zipfile
from email import message_from_bytes
from email.message import Message
from pathlib import Path

ROOT = Path(__file__).parents[1]
DIST = ROOT / "dist"
_HEADING = re.compile(r"^## \[(\d+\.\d+\.\d+)\] - (\d{4}-\d{2}-\d{2}|Unreleased)$", re.MULTILINE)


class ReleaseError(Exception):
    """Correct the tree before it is released; the text says how."""


def main() -> int:
    """Release the commit that is checked out."""
    arguments = argparse.ArgumentParser(description="Build, check and tag a release.")
    arguments.add_argument("--dry-run", action="store_true", help="build and check; do not tag")
    dry_run = arguments.parse_args().dry_run
    try:
        version = _check_tree(dry_run=dry_run)
        for file in _build(version):
            print(f"built and checked: {file.relative_to(ROOT)}")
        if dry_run:
            print(f"dry run: v{version} was not tagged")
        else:
            _run("git", "tag", "--annotate", f"v{version}", "--message", f"Release {version}")
            print(f"tagged: v{version}; push it with `git push origin v{version}`")
    except ReleaseError as error:
        print(f"release: {error}", file=sys.stderr)
        return 1
    return 0


def _check_tree(*, dry_run: bool) -> str:
    """Return the version; raise a `ReleaseError` if the tree cannot be released as it."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    version: str = project["version"]
    heading = _HEADING.search((ROOT / "CHANGELOG.md").read_text(encoding="utf-8"))
    if heading is None or heading[1] != version:
        found = "none" if heading is None else heading[1]
        raise ReleaseError(
            f"pyproject.toml has version {version}, and the newest heading of CHANGELOG.md is "
            f"{found}: make them the same"
        )
    if heading[2] == "Unreleased" and not dry_run:
        raise ReleaseError(f"CHANGELOG.md: write the date of {version} instead of Unreleased")
    if changed := _run("git", "status", "--porcelain"):
        raise ReleaseError(f"the tree has changes: commit or remove them:\n{changed}")
    if _run("git", "tag", "--list", f"v{version}"):
        raise ReleaseError(f"v{version} is tagged already: raise the version")
    return version


def _build(version: str) -> list[Path]:
    """Build both distributions, check them, and put them into dist/."""
    DIST.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(dir=DIST) as directory:
        build = [sys.executable, "-m", "uv", "--quiet", "build", "--no-build-isolation"]
        # Without --wheel or --sdist, uv builds the wheel from the sdist, which must be complete.
        _run(*build, "--python", sys.executable, "--out-dir", directory)
        name = f"execution_events-{version}"
        sdist = Path(directory) / f"{name}.tar.gz"
        wheel = Path(directory) / f"{name}-py3-none-any.whl"
        with tarfile.open(sdist) as archive:
            content = archive.extractfile(f"{name}/PKG-INFO")
            _check_metadata(sdist, b"" if content is None else content.read(), version)
        with zipfile.ZipFile(wheel) as packed:
            _check_metadata(wheel, packed.read(f"{name}.dist-info/METADATA"), version)
        return [file.replace(DIST / file.name) for file in (sdist, wheel)]


def _check_metadata(file: Path, content: bytes, version: str) -> None:
    metadata: Message[str, str] = message_from_bytes(content)
    wanted = {
        "Name": "execution-events",
        "Version": version,
        "License-Expression": "Apache-2.0",
        "Description-Content-Type": "text/markdown",
    }
    wrong = [f"{key} is {metadata[key]}" for key in wanted if metadata[key] != wanted[key]]
    for key in ("Requires-Python", "Summary", "Project-URL", "Requires-Dist"):
        if not metadata[key]:
            wrong.append(f"{key} is missing")
    if not str(metadata.get_payload()).strip():
        wrong.append("the description is empty")
    if wrong:
        raise ReleaseError(f"{file.name}: {', '.join(wrong)}")


def _run(*command: str) -> str:
    """Run a command in the root; return its output, or raise a `ReleaseError` with its errors."""
    ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    if ended.returncode:
        raise ReleaseError(f"{command[0]} failed:\n{ended.stderr.strip()}")
    return ended.stdout.strip()


if __name__ == "__main__":
    sys.exit(main())
