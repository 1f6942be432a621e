"""A parser of server-sent events (HTML standard, section 9.2.6), fed with the bytes of a stream.

`httpx-sse` has none of what tests and benchmarks check here: which message brought an id, comments,
and streams that are cut between two bytes.
"""

import re
from typing import NamedTuple

_LINE_END = re.compile(rb"\r\n|\n|\r")
_BOM = b"\xef\xbb\xbf"


class Message(NamedTuple):
    """One event of the stream; `id` is None where it came without one."""

    event: str
    data: str
    id: str | None


class Parser:
    """An incremental parser; a message ends with an empty line."""

    def __init__(self, last_id: str = "") -> None:
        self.last_id = last_id
        """The id to resume from: the last one that an empty line has followed."""
        self.ids = 0
        """Number of ids, with and without a message."""
        self.comments = 0
        self._unparsed = b""
        self._begun = False
        # Of the message that is not complete yet.
        self._data: list[str] = []
        self._event = ""
        self._id: str | None = None

    def feed(self, piece: bytes) -> list[Message]:
        """Return the messages that the next bytes complete."""
        self._unparsed += piece
        if not self._begun:
            if len(self._unparsed) < len(_BOM) and _BOM.startswith(self._unparsed):
                return []
            self._begun = True
            self._unparsed = self._unparsed.removeprefix(_BOM)
        # A CR at the end may be the first half of a CRLF.
        held = b"\r" if self._unparsed.endswith(b"\r") else b""
        *lines, rest = _LINE_END.split(self._unparsed.removesuffix(held))
        self._unparsed = rest + held
        messages = []
        for line in lines:
            if line:
                self._line(line.decode(errors="replace"))
            elif message := self._dispatch():
                messages.append(message)
        return messages

    def _line(self, line: str) -> None:
        name, _, value = line.partition(":")
        value = value.removeprefix(" ")
        match name:
            case "":
                self.comments += 1
            case "data":
                self._data.append(value)
            case "event":
                self._event = value
            case "id" if "\0" not in value:
                self._id = value
                self.ids += 1

    def _dispatch(self) -> Message | None:
        # Without a line of data there is no message, but the id counts.
        message = None
        if self._id is not None:
            self.last_id = self._id
        if self._data:
            message = Message(self._event or "message", "\n".join(self._data), self._id)
        self._data, self._event, self._id = [], "", None
        return message


class Chunks:
    """An incremental decoder of the chunked transfer coding (RFC 9112, 7.1)."""

    def __init__(self) -> None:
        self.ended = False
        self._unparsed = b""
        self._left = 0
        """Bytes left of the chunk, with the line break after it."""

    def feed(self, piece: bytes) -> bytes:
        """Return the content of the next bytes. Raises `ValueError` for a malformed chunk."""
        self._unparsed += piece
        content = []
        while self._unparsed and not self.ended:
            if not self._left:
                line, found, rest = self._unparsed.partition(b"\r\n")
                if not found:
                    break
                size = int(line.partition(b";")[0], 16)
                self.ended = size == 0
                self._left, self._unparsed = size + 2, rest
            taken = self._unparsed[: self._left]
            self._unparsed = self._unparsed[len(taken) :]
            # The last two bytes are the line break, which may come in two pieces.
            content.append(taken[: max(0, self._left - 2)])
            self._left -= len(taken)
        return b"".join(content)
