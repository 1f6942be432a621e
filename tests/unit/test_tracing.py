"""The traceparent of the current span, as OpenTelemetry's own propagator writes it."""

import subprocess
import sys
from types import ModuleType

import pytest
from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.sampling import ALWAYS_OFF
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from execution_events.publisher.tracing import current_traceparent

SAMPLED = TracerProvider()
UNSAMPLED = TracerProvider(sampler=ALWAYS_OFF)


@pytest.mark.parametrize("provider", [SAMPLED, UNSAMPLED])
def test_the_traceparent_is_that_of_the_current_span(provider: TracerProvider) -> None:
    with provider.get_tracer(__name__).start_as_current_span("work"):
        carrier: dict[str, str] = {}
        TraceContextTextMapPropagator().inject(carrier)
        assert current_traceparent() == carrier["traceparent"]
    assert current_traceparent() is None


def test_leading_zeros_are_kept() -> None:
    context = trace.SpanContext(trace_id=1, span_id=2, is_remote=True)
    with trace.use_span(trace.NonRecordingSpan(context)):
        assert current_traceparent() == f"00-{1:032x}-{2:016x}-00"


def test_there_is_no_traceparent_without_a_span() -> None:
    assert current_traceparent() is None


def test_there_is_no_traceparent_during_the_import_of_opentelemetry(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "opentelemetry.trace", ModuleType("opentelemetry.trace"))
    assert current_traceparent() is None


def test_opentelemetry_is_never_imported() -> None:
    program = (
        "import sys\n"
        "from execution_events.publisher.tracing import current_traceparent\n"
        "assert current_traceparent() is None\n"
        "assert not any(name.startswith('opentelemetry') for name in sys.modules)\n"
    )
    subprocess.run([sys.executable, "-c", program], check=True)
