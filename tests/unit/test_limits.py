"""Places for answers are taken and left in every way that an answer can end."""

import asyncio
from typing import Any

import pytest
from prometheus_client import CollectorRegistry

from execution_events.metrics import ReaderMetrics
from execution_events.web.limits import LimitError, Limits
from tests.support.configuration import configured


class Measured:
    """Limits, and what their metrics say."""

    def __init__(self, **settings: int) -> None:
        self.registry = CollectorRegistry()
        bounds: dict[str, Any] = {f"reader_max_{name}": number for name, number in settings.items()}
        self.limits = Limits(configured(**bounds).reader, ReaderMetrics(self.registry))

    def value(self, name: str, **labels: str) -> float | None:
        return self.registry.get_sample_value(f"execution_events_{name}", labels)

    @property
    def open(self) -> tuple[float | None, float | None]:
        return self.value("open_requests"), self.value("open_streams")


def test_a_caller_has_so_many_places_and_others_still_have_theirs() -> None:
    measured = Measured(requests=10, requests_per_token=2)
    with measured.limits.place("a"), measured.limits.place("a"):
        with pytest.raises(LimitError) as refused, measured.limits.place("a"):
            pass
        with measured.limits.place("b"):
            assert measured.open == (3, 0)
    assert refused.value.status_code == 429
    assert dict(refused.value.headers or {}) == {"Retry-After": "1"}
    assert measured.value("refused_total", reason="caller_requests") == 1
    assert measured.open == (0, 0)


def test_a_process_has_so_many_places() -> None:
    measured = Measured(requests=2, requests_per_token=2)
    with measured.limits.place("a"), measured.limits.place("b"):
        with pytest.raises(LimitError), measured.limits.place("c"):
            pass
        assert measured.open == (2, 0)
    assert measured.value("refused_total", reason="process_requests") == 1
    with measured.limits.place("c"):
        assert measured.open == (1, 0)


def test_a_stream_takes_no_requests_place() -> None:
    measured = Measured(requests=1, requests_per_token=1, streams=2, streams_per_token=1)
    with measured.limits.place("a") as place:
        place.become_stream()
        place.become_stream()
        assert measured.open == (0, 1)
        with measured.limits.place("a"):
            assert measured.open == (1, 1)
    assert measured.open == (0, 0)


@pytest.mark.parametrize(("other", "reason"), [("a", "caller_streams"), ("b", "process_streams")])
def test_a_stream_that_is_refused_is_still_a_request(other: str, reason: str) -> None:
    per_token = 1 if other == "a" else 9
    measured = Measured(streams=1, streams_per_token=per_token)
    with measured.limits.place("a") as first:
        first.become_stream()
        with measured.limits.place(other) as second:
            with pytest.raises(LimitError):
                second.become_stream()
            assert measured.open == (1, 1)
        assert measured.open == (0, 1)
    assert measured.value("refused_total", reason=reason) == 1
    assert measured.open == (0, 0)


@pytest.mark.parametrize("streams", [False, True])
@pytest.mark.parametrize("end", [ValueError, asyncio.CancelledError, GeneratorExit, None])
def test_a_place_is_left_however_the_answer_ends(
    end: type[BaseException] | None, streams: bool
) -> None:
    measured = Measured(requests_per_token=1, streams_per_token=1)
    for _ in range(3):
        try:
            with measured.limits.place("a") as place:
                if streams:
                    place.become_stream()
                if end is not None:
                    raise end
        except BaseException as error:
            assert type(error) is end  # noqa: PT017
    assert measured.open == (0, 0)


async def test_a_task_that_is_cancelled_leaves_its_place() -> None:
    measured = Measured()
    entered = asyncio.Event()

    async def answer() -> None:
        with measured.limits.place("a"):
            entered.set()
            await asyncio.Event().wait()

    task = asyncio.create_task(answer())
    await entered.wait()
    assert measured.open == (1, 0)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    assert measured.open == (0, 0)


def test_callers_that_have_gone_are_forgotten() -> None:
    measured = Measured()
    for number in range(100):
        with measured.limits.place(str(number)):
            pass
    assert not measured.limits.requests._by_key
