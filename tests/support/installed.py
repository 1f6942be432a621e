"""Environments with the distributions of a lock, in the cache directory."""

import asyncio
import hashlib
import sys
from collections.abc import Mapping
from pathlib import Path

from tests.support.configuration import CACHE_DIR


def directory(name: str, lock: bytes) -> Path:
    """Return the directory of a lock's environment for this version of Python."""
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    return CACHE_DIR / f"{name}-{version}-{hashlib.sha256(lock).hexdigest()[:12]}"


async def environment(name: str, lock: Path) -> Path:
    """Return the environment of a lock; the first call installs it."""
    root = directory(name, lock.read_bytes())
    done = root / "installed"
    if not done.exists():
        await run(sys.executable, "-m", "venv", "--clear", str(root))
        await run(
            *(str(root / "bin" / "python"), "-m", "pip", "--quiet", "--disable-pip-version-check"),
            *("install", "--require-hashes", "-r", str(lock)),
        )
        done.touch()
    return root


async def run(*command: str, cwd: Path | None = None, env: Mapping[str, str] | None = None) -> None:
    """Run a command that must succeed."""
    process = await asyncio.create_subprocess_exec(*command, cwd=cwd, env=env)
    if code := await process.wait():
        raise RuntimeError(f"{' '.join(command)} ended with exit code {code}")
