"""`settings`: every setting, its value and source."""

import argparse
import os
from typing import Any

import msgspec

from execution_events.cli.streams import write_line
from execution_events.settings import Settings, describe


def add_commands(commands: Any) -> None:
    """Add the command to the command line."""
    settings = commands.add_parser(
        "settings",
        help="show every setting, its value and source",
        description="Show every setting, its value and source; secrets are hidden. A secret can "
        "also come from a file: append _FILE to the variable, and set it to the path.",
    )
    settings.add_argument("--json", action="store_true", help="print one JSON object per line")
    settings.set_defaults(run=_show)


def _show(arguments: argparse.Namespace, _: Settings) -> int:
    for info in describe(os.environ):
        if arguments.json:
            write_line(msgspec.json.encode(info._asdict()).decode())
        else:
            value = "(not set)" if info.value is None else info.value
            source = "" if info.source == info.variable else f"  [{info.source}]"
            write_line(f"{info.variable}={value}{source}\n    {info.doc}")
    return 0
