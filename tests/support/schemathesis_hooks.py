"""Hooks that schemathesis loads into its own process (`SCHEMATHESIS_HOOKS`)."""

from typing import Any

import cramjam
import schemathesis


@schemathesis.hook
def after_call(
    context: schemathesis.HookContext, case: schemathesis.Case[Any], response: schemathesis.Response
) -> None:
    """Decode zstd, which its client does not support; an invalid body ends the run."""
    if response.headers.get("content-encoding") == ["zstd"] and case.method != "HEAD":
        response.content = bytes(cramjam.zstd.decompress(response.content))
