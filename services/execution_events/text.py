"""Text from outside, for one line of a log or of an error."""


def one_line(text: str) -> str:
    """Return `text` with control characters escaped: a line break could forge another line."""
    return text if text.isprintable() else text.encode("unicode_escape").decode()
