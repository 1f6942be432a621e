"""Kafka's errors, as `RetryableError` and as text."""

import re

from execution_events.errors import RetryableError


def error_text(error: BaseException) -> str:
    """Return an error's type and text, or "no answer" for a timeout.

    The texts of aiokafka's errors repeat the type; here it is named once.
    """
    if isinstance(error, TimeoutError):
        return "no answer"
    name = type(error).__name__
    text = re.sub(rf"^(\[Error -?\d+\] )?{name}(: |$)", "", str(error))
    return f"{name}: {text}" if text else name


def kafka_error(address: object, text: str, cause: str = "other") -> RetryableError:
    """Return an error whose text begins with `Kafka at` and the broker's address."""
    return RetryableError(f"Kafka at {address}: {text}", cause)


def translated(address: object, error: BaseException) -> RetryableError:
    """Return `error`, raised by a client of the broker at `address`, as a `RetryableError`."""
    return kafka_error(address, error_text(error), type(error).__name__)


def missing_topic(topic: str) -> str:
    """Return the text of an error about a topic that does not exist."""
    return f"the topic {topic} does not exist: run `execution-events topic create`"


def no_leader_error(address: object, partition: int) -> RetryableError:
    """Return the error of a partition that has no leader."""
    return kafka_error(address, f"partition {partition} has no leader", "LeaderNotAvailableError")
