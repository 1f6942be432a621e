"""Text from outside, made harmless for a terminal, and measured in its columns."""

from unicodedata import category, east_asian_width


def harmless(text: str, encoding: str = "utf-8") -> str:
    """Return `text` on one line, without anything that a terminal obeys or cannot show.

    Control and formatting characters (also C1 and those that change the direction of text) and
    line separators are escaped as in Python; spaces of other widths become spaces. Characters
    outside `encoding` are escaped too.
    """
    if not text.isprintable():
        text = "".join(map(_escaped, text))
    if encoding != "utf-8":
        text = text.encode(encoding, "backslashreplace").decode(encoding)
    return text


def columns(text: str) -> int:
    """Return the number of terminal columns of a harmless text."""
    return len(text) if text.isascii() else sum(map(_columns, text))


def cut(text: str, limit: int, mark: str) -> str:
    """Return `text` in at most `limit` columns; `mark` stands for what is cut off."""
    if columns(text) <= limit:
        return text
    left = limit - columns(mark)
    for index, character in enumerate(text):
        left -= _columns(character)
        if left < 0:
            return text[:index] + mark[:limit]
    return text


def padded(text: str, width: int) -> str:
    """Return `text` with spaces up to `width` columns."""
    return text + " " * (width - columns(text))


def _escaped(character: str) -> str:
    if character.isprintable():
        return character
    if category(character) == "Zs":
        return " "
    return character.encode("unicode_escape", "surrogatepass").decode()


def _columns(character: str) -> int:
    if east_asian_width(character) in "WF":
        return 2
    return 0 if category(character) in ("Mn", "Me") else 1
