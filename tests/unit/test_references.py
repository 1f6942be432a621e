"""The references in `schemas/` are generated from the code."""

import pytest
from prometheus_client import CollectorRegistry

from execution_events.metrics import ConsumerMetrics, ReaderMetrics
from tests.support.references import REFERENCES, SCHEMAS


@pytest.mark.parametrize("name", REFERENCES)
def test_a_committed_reference_equals_the_generated_one(name: str) -> None:
    command = f"python -m tests.support.references {name}"
    assert (SCHEMAS / f"{name}.md").read_text() == REFERENCES[name](), f"run {command}"


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
