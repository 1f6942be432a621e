"""The references in schemas/ are those of the code."""

import pytest
from prometheus_client import CollectorRegistry

from execution_events.metrics import ConsumerMetrics, ReaderMetrics
from execution_events.settings import describe
from tests.support.golden import SCHEMAS
from tests.support.references import REFERENCES, commands, settings


@pytest.mark.parametrize("name", REFERENCES)
def test_a_reference_is_up_to_date(name: str) -> None:
    committed = (SCHEMAS / name).read_text(encoding="utf-8")
    assert committed == REFERENCES[name](), "run `make references`"


def test_the_settings_have_every_variable() -> None:
    reference = settings()
    for info in describe({}):
        assert f"| `{info.variable}` |" in reference
        assert info.doc in reference


def test_the_commands_have_every_option(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_DATA_HOME", "/elsewhere")
    reference = commands()
    assert "/elsewhere" not in reference
    for text in ("## execution-events dead-letters list\n", "| `--older-than AGE` |", "| `ID` |"):
        assert text in reference


@pytest.mark.parametrize("service", [ConsumerMetrics, ReaderMetrics])
def test_every_exported_metric_is_defined(
    service: type[ConsumerMetrics] | type[ReaderMetrics],
) -> None:
    registry = CollectorRegistry()
    defined = {
        (metric.name.removesuffix("_total"), metric.type, metric.help)
        for metric in service(registry).definitions
    }
    exported = {(metric.name, metric.type, metric.documentation) for metric in registry.collect()}
    assert defined == exported
