"""What schemathesis loads (`SCHEMATHESIS_HOOKS`) into its own process."""

from typing import Any

import cramjam
import schemathesis


@schemathesis.hook
def after_call(
    context: schemathesis.HookContext, case: schemathesis.Case[Any], response: schemathesis.Response
) -> None:
    """Decode zstd, which its client does not know; an answer that is none ends the run."""
    if response.headers.get("content-encoding") == ["zstd"] and case.method != "HEAD":
        response.content = bytes(cramjam.zstd.decompress(response.content))
