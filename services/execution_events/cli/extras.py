"""Commands need what workers do not install: a missing extra is named."""

from collections.abc import Iterator
from contextlib import contextmanager

from execution_events.errors import SettingsError


@contextmanager
def extra(name: str) -> Iterator[None]:
    """Around a command's imports: a missing library becomes the command that installs it."""
    try:
        yield
    except ModuleNotFoundError as error:
        library = (error.name or "a library").partition(".")[0]
        raise SettingsError(
            f"{library} is not installed: pip install 'execution-events[{name}]'"
        ) from error
