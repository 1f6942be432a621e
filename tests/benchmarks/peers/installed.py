"""Python environment of the peers: the versions of `requirements.txt`, in the cache directory."""

import asyncio
import hashlib
import sys
from pathlib import Path

from tests.support.configuration import CACHE_DIR

LOCK = Path(__file__).with_name("requirements.txt")


def directory(cache: Path, lock: bytes) -> Path:
    """Return the directory of a lock's environment for this version of Python."""
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    return cache / f"benchmark-peers-{version}-{hashlib.sha256(lock).hexdigest()[:12]}"


async def python() -> Path:
    """Return the interpreter of the peers' environment; the first call installs it."""
    root = directory(CACHE_DIR, LOCK.read_bytes())
    interpreter, done = root / "bin" / "python", root / "installed"
    if not done.exists():
        await _run(sys.executable, "-m", "venv", "--clear", str(root))
        await _run(
            *(str(interpreter), "-m", "pip", "--quiet", "--disable-pip-version-check"),
            *("install", "--require-hashes", "-r", str(LOCK)),
        )
        done.touch()
    return interpreter


async def _run(*command: str) -> None:
    process = await asyncio.create_subprocess_exec(*command)
    if code := await process.wait():
        raise RuntimeError(f"{' '.join(command)} ended with exit code {code}")
