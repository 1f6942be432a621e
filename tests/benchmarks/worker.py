"""Runs a module of the benchmarks as a process of its own."""

import asyncio
import json
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]


async def measured(
    *arguments: str, env: Mapping[str, str] | None = None, stdin: bytes = b""
) -> dict[str, Any]:
    """The JSON object that `python ARGUMENTS` prints; it never outlives this call."""
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        *arguments,
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env=env,
    )
    try:
        out, _ = await process.communicate(stdin)
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    if process.returncode:
        raise RuntimeError(f"{' '.join(arguments)} ended with exit code {process.returncode}")
    content: dict[str, Any] = json.loads(out)
    return content
