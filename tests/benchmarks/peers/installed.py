"""The peers' own Python: what `requirements.txt` pins, in the cache directory."""

import asyncio
import hashlib
import sys
from pathlib import Path

from tests.support.configuration import CACHE_DIR

LOCK = Path(__file__).with_name("requirements.txt")


def directory(cache: Path, lock: bytes) -> Path:
    """Where the environment of a lock is, made by this version of Python."""
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    return cache / f"benchmark-peers-{version}-{hashlib.sha256(lock).hexdigest()[:12]}"


async def python() -> Path:
    """The interpreter that has the peers; the first call installs them."""
    place = directory(CACHE_DIR, LOCK.read_bytes())
    interpreter, done = place / "bin" / "python", place / "installed"
    if not done.exists():
        await _run(sys.executable, "-m", "venv", "--clear", str(place))
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
