"""The report of a command that changes something."""

from types import TracebackType
from typing import Self

from execution_events.cli.streams import OutputLostError, flush_output, note, write_line


class Report:
    """The lines that a command prints, and what it has done and leaves to do.

    A context manager around the whole work. The command is judged by its work: if standard output
    fails, the work continues without it, and `done` goes to standard error at the end, else to
    standard output unless `prints_done` is false. An error or an interruption gets `done` and
    `remedy` as notes, which `main` prints after the error.
    """

    def __init__(self, *, prints_done: bool = True) -> None:
        self.done = ""
        self.remedy = ""
        self._prints_done = prints_done
        self._lost: OutputLostError | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if exc is not None:
            self.flush()
            for line in self.done.splitlines():
                exc.add_note(line)
            # An error before the work began has its own remedy.
            if self.remedy and (self.done or isinstance(exc, KeyboardInterrupt)):
                exc.add_note(self.remedy)
            return
        if self.done and self._prints_done:
            self.line(self.done)
        self.flush()
        if self._lost is not None:
            note(str(self._lost))
            for line in self.done.splitlines():
                note(line)

    def line(self, text: str) -> None:
        """Print a line, unless standard output has failed."""
        if self._lost is None:
            try:
                write_line(text)
            except OutputLostError as error:
                self._lost = error

    def flush(self) -> None:
        """Print what is buffered, unless standard output has failed."""
        if self._lost is None:
            try:
                flush_output()
            except OutputLostError as error:
                self._lost = error
