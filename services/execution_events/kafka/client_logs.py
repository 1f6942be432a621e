"""The log records of aiokafka, which a worker sees in its own log."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

from execution_events.logs import Repetitions

_LOGGERS = (
    "aiokafka",
    "aiokafka.cluster",
    "aiokafka.conn",
    "aiokafka.producer.producer",
    "aiokafka.producer.sender",
)

_repetitions: ContextVar[Repetitions | None] = ContextVar(
    "execution_events_repetitions", default=None
)


@contextmanager
def collapsed(repetitions: Repetitions) -> Iterator[None]:
    """Log equal records of the clients started in the block once a minute, with their number.

    aiokafka logs each failed attempt to connect. Its tasks inherit the context in which they are
    started, so that the records of an application's own clients stay as they are.
    """
    token = _repetitions.set(repetitions)
    try:
        yield
    finally:
        _repetitions.reset(token)


def _filter(record: logging.LogRecord) -> bool:
    repetitions = _repetitions.get()
    if repetitions is None:
        return True
    text = record.getMessage()
    repeated = repetitions.count((record.name, record.levelno, text))
    if repeated is None:
        return False
    if repeated:
        record.msg, record.args = f"%s  repeated={repeated['repeated']}", (text,)
    return True


for _name in _LOGGERS:
    logging.getLogger(_name).addFilter(_filter)
