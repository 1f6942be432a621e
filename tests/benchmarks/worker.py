"""Modules of the benchmarks, each run as a process of its own."""

import asyncio
import json
import os
import subprocess
from collections.abc import Mapping
from typing import Any

from tests.benchmarks.trees import THIS, Tree


async def measured(
    *arguments: str,
    env: Mapping[str, str] | None = None,
    stdin: bytes = b"",
    tree: Tree = THIS,
) -> dict[str, Any]:
    """Run `python ARGUMENTS` in a tree and return the JSON object that it prints.

    The process never outlives this call. Raises `RuntimeError` if it fails.
    """
    process = await asyncio.create_subprocess_exec(
        tree.python,
        *arguments,
        cwd=tree.root,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        # Unbuffered, Python would lose the rest of a long text whose write a signal interrupts.
        env={**(os.environ if env is None else env), "PYTHONUNBUFFERED": ""},
    )
    try:
        out, _ = await process.communicate(stdin)
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    if process.returncode:
        raise RuntimeError(
            f"{' '.join(arguments)} in {tree.root} ended with exit code {process.returncode}"
        )
    content: dict[str, Any] = json.loads(out)
    return content
