"""`reader`: the reader in the foreground."""

import argparse
from typing import Any

from execution_events.cli.extras import extra
from execution_events.cli.signals import run_until_stopped
from execution_events.settings import Settings


def add_commands(commands: Any) -> None:
    """Add the command to the command line."""
    reader = commands.add_parser(
        "reader",
        help="serve GET /v1/executions/{execution_id}/events",
        description="Serve GET /v1/executions/{execution_id}/events. Without "
        "EXECUTION_EVENTS_TOKENS_FILE or EXECUTION_EVENTS_JWKS_URL it serves loopback addresses "
        "only. SIGINT or SIGTERM stops it.",
    )
    reader.set_defaults(run=_run)


def _run(_: argparse.Namespace, settings: Settings) -> int:
    with extra("reader"):
        import uvloop

        from execution_events.reader.service import run_reader
    return run_until_stopped(
        lambda stop: run_reader(settings, stop), settings.stop_timeout, uvloop.new_event_loop
    )
