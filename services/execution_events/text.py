"""Text from outside, for one line of a log or of an error."""

import os
import re

_ERRNO = re.compile(r"\[Errno ([0-9]+)\]")


def one_line(text: str) -> str:
    """Return `text` with control characters escaped: a line break could forge another line."""
    return text if text.isprintable() else text.encode("unicode_escape").decode()


def system_error(error: OSError) -> str:
    """Return the system's text of a failed connection or file, without a Python representation.

    asyncio replaces the text by that of its own call, and joins those of several addresses.
    """
    if isinstance(error, TimeoutError):
        return "no answer"
    numbers = _ERRNO.findall(str(error))
    if numbers:
        return os.strerror(int(numbers[0]))
    return error.strerror or str(error) or type(error).__name__
