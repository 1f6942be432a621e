"""The standard streams of a command: closed, full or of a narrow encoding."""

import codecs
import io
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import TextIO

from execution_events.errors import ExecutionEventsError

_ESCAPING = "execution_events_escaping"


class OutputLostError(ExecutionEventsError):
    """Print nothing more: standard output cannot be written.

    `quiet` is true for a pipe whose reader has ended, as in `… | head -1`.
    """

    def __init__(self, error: OSError) -> None:
        super().__init__(f"cannot write to standard output: {error.strerror or error}")
        self.quiet = isinstance(error, BrokenPipeError)


def prepare_streams() -> None:
    """Make the standard streams safe to use.

    A descriptor that is closed is opened for the wrong direction: its use fails, and no file or
    connection opened later becomes standard output. Characters that the encoding of a stream lacks
    are written as `\\uXXXX`, which JSON reads back. A write of which the system takes a part, as a
    signal or a full disk ends it, is repeated for the rest or fails.
    """
    for number, direction in enumerate((os.O_WRONLY, os.O_RDONLY, os.O_RDONLY)):
        try:
            os.fstat(number)
        except OSError:
            # The lowest free descriptor is this one.
            os.set_inheritable(os.open(os.devnull, direction), True)
    # Python sets a stream to None if its descriptor was closed.
    if sys.stdin is None:
        sys.stdin = open(0, closefd=False)  # noqa: SIM115
    if sys.stdout is None:
        sys.stdout = open(1, "w", closefd=False)  # noqa: SIM115
    if sys.stderr is None:
        sys.stderr = open(2, "w", buffering=1, closefd=False)  # noqa: SIM115
    codecs.register_error(_ESCAPING, _escaped)
    sys.stdout, sys.stderr = map(_safe, (sys.stdout, sys.stderr))


def write_line(text: str) -> None:
    """Write a line to standard output; raise `OutputLostError` if that fails."""
    with _translated():
        print(text)


def write_text(text: str) -> None:
    """Write text to standard output at once; raise `OutputLostError` if that fails."""
    with _translated():
        sys.stdout.write(text)
        sys.stdout.flush()


def write_bytes(content: bytes) -> None:
    """Write bytes to standard output; raise `OutputLostError` if that fails."""
    with _translated():
        sys.stdout.flush()
        sys.stdout.buffer.write(content)


def flush_output() -> None:
    """Write what is buffered; raise `OutputLostError` if that fails."""
    with _translated():
        sys.stdout.flush()


def note(text: str) -> None:
    """Write a line of this command to standard error, if that is possible."""
    write_note(f"execution-events: {text}\n")


def write_note(text: str) -> None:
    """Write text to standard error at once, if that is possible."""
    try:
        sys.stderr.write(text)
        sys.stderr.flush()
    except OSError:
        _discard(sys.stderr)


def _safe(stream: TextIO) -> TextIO:
    """Return a stream that loses nothing of what it writes."""
    if isinstance(stream, io.TextIOWrapper):
        buffer: io.IOBase = stream.buffer
        if isinstance(buffer, io.RawIOBase):
            # With PYTHONUNBUFFERED, as in the image, Python ignores how much a write has taken.
            stream = open(  # noqa: SIM115
                stream.fileno(), "w", buffering=1, encoding=stream.encoding, closefd=False
            )
        stream.reconfigure(errors=_ESCAPING)
    return stream


@contextmanager
def _translated() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        _discard(sys.stdout)
        raise OutputLostError(error) from error


def _discard(stream: TextIO) -> None:
    """Send the rest of a stream nowhere: Python flushes it at exit, and would fail again."""
    with suppress(OSError, io.UnsupportedOperation):
        sink = os.open(os.devnull, os.O_WRONLY)
        os.dup2(sink, stream.fileno())
        os.close(sink)


def _escaped(error: UnicodeError) -> tuple[str, int]:
    if not isinstance(error, UnicodeEncodeError):
        raise error
    units = error.object[error.start : error.end].encode("utf-16-be", "surrogatepass").hex()
    return "".join(f"\\u{units[at : at + 4]}" for at in range(0, len(units), 4)), error.end
