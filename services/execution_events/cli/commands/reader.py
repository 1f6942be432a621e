"""`reader`: the reader in the foreground."""

import argparse
from typing import Any

from execution_events.cli.extras import extra
from execution_events.cli.signals import run_until_stopped
from execution_events.settings import Settings, variable_of


def add_commands(commands: Any) -> None:
    """Add the command to the command line."""
    reader = commands.add_parser(
        "reader",
        help="serve GET /v1/executions/{execution_id}/events",
        description="Serve the executions' events over HTTP. SIGINT or SIGTERM stops it.",
        epilog=f"""\
needs:
  {variable_of("database_url")}  as execution_events_reader: `execution-events migrate`
  {variable_of("tokens_file")}   or {variable_of("jwks_url")}; without either it serves
                                 loopback addresses only, without authentication
serves, on {variable_of("reader_host")} and {variable_of("reader_port")} (127.0.0.1:8080):
  /v1/executions/{{execution_id}}/events  JSON; or NDJSON, or a watch, by the header Accept
and on {variable_of("management_host")} and {variable_of("management_port")} (127.0.0.1:8081):
  /livez    200 while the process works; else replace it
  /readyz   200 while PostgreSQL answers; else 503 with the reasons
  /metrics  requests, streams, refusals and more, for Prometheus: schemas/metrics.md
""",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    reader.set_defaults(run=_run)


def _run(_: argparse.Namespace, settings: Settings) -> int:
    with extra("reader"):
        import uvloop

        from execution_events.reader.service import run_reader
    return run_until_stopped(
        lambda stop: run_reader(settings, stop), settings.stop_timeout, uvloop.new_event_loop
    )
