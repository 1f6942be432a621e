"""A copy of the product's source, so that a run is unaffected by later edits."""

import hashlib
import os
import shutil
from dataclasses import dataclass
from pathlib import Path

SERVICES = Path(__file__).parents[2] / "services"


@dataclass(frozen=True)
class Source:
    """A directory with the package `execution_events`, for the processes of the product."""

    path: Path

    def environment(self) -> dict[str, str]:
        """Return this process's environment without settings, with the copy as the import path."""
        variables = {
            name: value
            for name, value in os.environ.items()
            if not name.startswith("EXECUTION_EVENTS_")
        }
        return variables | {"PYTHONPATH": str(self.path), "PYTHONDONTWRITEBYTECODE": "1"}

    def mentions(self, text: str) -> bool:
        """Return True if a module of the product contains `text`, the sign of a feature."""
        return any(text in file.read_text() for file in self.path.rglob("*.py"))

    def digest(self) -> str:
        """Return twelve hexadecimal digits that identify the source's modules and SQL files."""
        digest = hashlib.sha256()
        for file in sorted(self.path.rglob("*")):
            if file.suffix in (".py", ".sql"):
                digest.update(str(file.relative_to(self.path)).encode() + b"\0")
                digest.update(file.read_bytes())
        return digest.hexdigest()[:12]


def copy(target: Path) -> Source:
    """Copy the current source into the new directory `target`."""
    shutil.copytree(SERVICES, target, ignore=shutil.ignore_patterns("__pycache__"))
    return Source(target)
