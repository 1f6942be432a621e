"""A copy of the product's source, so that one run tests one state of it."""

import hashlib
import os
import shutil
from dataclasses import dataclass
from pathlib import Path

SERVICES = Path(__file__).parents[2] / "services"


@dataclass(frozen=True)
class Source:
    """A directory that holds the package `execution_events`; processes started on it use it."""

    path: Path

    def environment(self) -> dict[str, str]:
        """The variables of this process that make a child import the copy, and nothing more."""
        kept = {
            name: value
            for name, value in os.environ.items()
            if not name.startswith("EXECUTION_EVENTS_")
        }
        return kept | {"PYTHONPATH": str(self.path), "PYTHONDONTWRITEBYTECODE": "1"}

    def mentions(self, text: str) -> bool:
        """Whether any module of the product holds `text`: what it cannot do is not tested."""
        return any(text in file.read_text() for file in self.path.rglob("*.py"))

    def digest(self) -> str:
        """Twelve hexadecimal digits that change with every byte of the source."""
        digest = hashlib.sha256()
        for file in sorted(self.path.rglob("*")):
            if file.suffix in (".py", ".sql"):
                digest.update(str(file.relative_to(self.path)).encode() + b"\0")
                digest.update(file.read_bytes())
        return digest.hexdigest()[:12]


def copy(target: Path) -> Source:
    """A copy of the source as it is now, in the new directory `target`."""
    shutil.copytree(SERVICES, target, ignore=shutil.ignore_patterns("__pycache__"))
    return Source(target)
