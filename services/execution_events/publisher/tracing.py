"""The trace context of an event, so that it can be followed through the log."""

import sys


def current_traceparent() -> str | None:
    """Return the W3C `traceparent` of the current OpenTelemetry span, None without a span.

    A program that has not imported opentelemetry has no span, so this never imports it.
    """
    trace = sys.modules.get("opentelemetry.trace")
    # While another thread imports the module, it is registered but incomplete.
    current_span = getattr(trace, "get_current_span", None)
    if current_span is None:
        return None
    context = current_span().get_span_context()
    if not context.is_valid:
        return None
    return f"00-{context.trace_id:032x}-{context.span_id:016x}-{context.trace_flags:02x}"
