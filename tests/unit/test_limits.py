"""Slots are acquired, exchanged and released however a response ends."""

import asyncio
from typing import Any

import pytest
from prometheus_client import CollectorRegistry

from execution_events.metrics import ReaderMetrics
from execution_events.web.limits import ConcurrencyLimits, LimitError
from tests.support.configuration import configured


class Measured:
    """Limits and their metrics."""

    def __init__(self, **settings: int) -> None:
        self.registry = CollectorRegistry()
        values: dict[str, Any] = {f"reader_max_{name}": number for name, number in settings.items()}
        self.limits = ConcurrencyLimits(configured(**values).reader, ReaderMetrics(self.registry))

    def value(self, name: str, **labels: str) -> float | None:
        return self.registry.get_sample_value(f"execution_events_{name}", labels)

    @property
    def open(self) -> tuple[float | None, float | None]:
        return self.value("open_requests"), self.value("open_streams")


def test_the_limit_of_a_caller_leaves_slots_to_others() -> None:
    measured = Measured(requests=10, requests_per_token=2)
    with measured.limits.slot("a"), measured.limits.slot("a"):
        with pytest.raises(LimitError) as refused, measured.limits.slot("a"):
            pass
        with measured.limits.slot("b"):
            assert measured.open == (3, 0)
    assert refused.value.status_code == 429
    assert dict(refused.value.headers or {}) == {"Retry-After": "1"}
    assert measured.value("refused_total", reason="caller_requests") == 1
    assert measured.open == (0, 0)


def test_all_callers_share_the_limit_of_the_process() -> None:
    measured = Measured(requests=2, requests_per_token=2)
    with measured.limits.slot("a"), measured.limits.slot("b"):
        with pytest.raises(LimitError), measured.limits.slot("c"):
            pass
        assert measured.open == (2, 0)
    assert measured.value("refused_total", reason="process_requests") == 1
    with measured.limits.slot("c"):
        assert measured.open == (1, 0)


def test_a_stream_holds_no_request_slot() -> None:
    measured = Measured(requests=1, requests_per_token=1, streams=2, streams_per_token=1)
    with measured.limits.slot("a") as slot:
        slot.become_stream()
        slot.become_stream()
        assert measured.open == (0, 1)
        with measured.limits.slot("a"):
            assert measured.open == (1, 1)
    assert measured.open == (0, 0)


@pytest.mark.parametrize(("other", "reason"), [("a", "caller_streams"), ("b", "process_streams")])
def test_a_refused_stream_keeps_its_request_slot(other: str, reason: str) -> None:
    per_token = 1 if other == "a" else 9
    measured = Measured(streams=1, streams_per_token=per_token)
    with measured.limits.slot("a") as first:
        first.become_stream()
        with measured.limits.slot(other) as second:
            with pytest.raises(LimitError):
                second.become_stream()
            assert measured.open == (1, 1)
        assert measured.open == (0, 1)
    assert measured.value("refused_total", reason=reason) == 1
    assert measured.open == (0, 0)


@pytest.mark.parametrize("streams", [False, True])
@pytest.mark.parametrize("end", [ValueError, asyncio.CancelledError, GeneratorExit, None])
def test_a_slot_is_released_however_the_response_ends(
    end: type[BaseException] | None, streams: bool
) -> None:
    measured = Measured(requests_per_token=1, streams_per_token=1)
    for _ in range(3):
        try:
            with measured.limits.slot("a") as slot:
                if streams:
                    slot.become_stream()
                if end is not None:
                    raise end
        except BaseException as error:
            assert type(error) is end  # noqa: PT017
    assert measured.open == (0, 0)


async def test_a_cancelled_task_releases_its_slot() -> None:
    measured = Measured()
    entered = asyncio.Event()

    async def respond() -> None:
        with measured.limits.slot("a"):
            entered.set()
            await asyncio.Event().wait()

    task = asyncio.create_task(respond())
    await entered.wait()
    assert measured.open == (1, 0)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    assert measured.open == (0, 0)


def test_callers_without_slots_take_no_memory() -> None:
    measured = Measured()
    for number in range(100):
        with measured.limits.slot(str(number)):
            pass
    assert not measured.limits.requests._by_key
