"""The optional dependencies of commands."""

from collections.abc import Iterator
from contextlib import contextmanager

from execution_events.errors import SettingsError


@contextmanager
def extra(name: str) -> Iterator[None]:
    """Name the extra to install when an import in the `with` block finds no library."""
    try:
        yield
    except ModuleNotFoundError as error:
        library = (error.name or "a library").partition(".")[0]
        raise SettingsError(
            f"{library} is not installed: in a checkout, pip install '.[{name}]'; elsewhere, pip"
            f" install 'WHEEL[{name}]' (README.md, Install it)"
        ) from error
