"""Fail points: their specification, and the order in which a consumer reaches them."""

import signal

import pytest

from execution_events.settings import Settings
from tests.faults.failpoints import POINTS, hooked, signalling
from tests.support.consumers import consuming, until_stored
from tests.support.occurrences import publish


def test_a_process_signals_itself_at_the_nth_time(monkeypatch: pytest.MonkeyPatch) -> None:
    sent: list[int] = []
    monkeypatch.setattr("tests.faults.failpoints.os.kill", lambda _, number: sent.append(number))
    hook = signalling("begun:2:stop")
    for point in ("begun", "fetched", "committed"):
        hook(point)
    assert sent == []
    for _ in range(3):
        hook("begun")
    assert sent == [signal.SIGSTOP]


@pytest.mark.parametrize("spec", ["", "nowhere:1:kill", "begun:x:kill", "begun:1:end", *POINTS])
def test_a_malformed_spec_is_refused(spec: str) -> None:
    with pytest.raises(ValueError, match="expected POINT:N:kill"):
        signalling(spec)


async def test_a_consumer_reaches_every_point_in_order(settings: Settings) -> None:
    reached: list[str] = []
    await publish(settings, [1])
    with hooked(reached.append):
        async with consuming(settings):
            await until_stored(settings)
    assert set(reached) == set(POINTS)
    begun = reached.index("begun")
    # The probe commits too.
    assert set(reached[:begun]) <= {"assigned", "fetched"}
    in_order = [point for point in reached[begun:] if point not in ("fetched", "assigned")]
    assert in_order == ["begun", "offsets_set", "upserted", "commit_sent", "committed"]
    assert reached.index("assigned") < reached.index("fetched") < begun
