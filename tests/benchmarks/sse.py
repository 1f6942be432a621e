"""Server-sent events, as a browser reads them: the HTML standard, section 9.2.6."""

import re
from typing import NamedTuple

_LINE_END = re.compile(rb"\r\n|\n|\r")
_BOM = b"\xef\xbb\xbf"


class Message(NamedTuple):
    """One event of the stream; `id` is the one that it came with, if it came with one."""

    event: str
    data: str
    id: str | None


class Parser:
    """Messages out of a stream's bytes. What is not ended by an empty line is none."""

    def __init__(self) -> None:
        self.comments = 0
        self._unparsed = b""
        self._begun = False
        # Of the message that is not complete yet.
        self._data: list[str] = []
        self._event = ""
        self._id: str | None = None

    def feed(self, piece: bytes) -> list[Message]:
        """The messages that the next bytes complete."""
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

    def _dispatch(self) -> Message | None:
        # A message without a line of data is none, whatever else it has.
        message = None
        if self._data:
            message = Message(self._event or "message", "\n".join(self._data), self._id)
        self._data, self._event, self._id = [], "", None
        return message


class Chunks:
    """The content of a body in chunks (RFC 9112, 7.1), as its bytes come in."""

    def __init__(self) -> None:
        self.ended = False
        self._unparsed = b""
        self._left = 0
        """Of the chunk, with the line break after it."""

    def feed(self, piece: bytes) -> bytes:
        """The content of the next bytes. Raises `ValueError` for what is no chunk."""
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
