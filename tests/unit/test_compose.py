"""infra/compose.yaml as text: its commands and settings exist, and it contains no password."""

import re
from pathlib import Path

import pytest

from execution_events.cli.main import parser
from execution_events.settings import unknown
from execution_events.store.sql import load_queries

COMPOSE = (Path(__file__).parents[2] / "infra" / "compose.yaml").read_text()


def test_images_are_pinned() -> None:
    images = set(re.findall(r"^ +image: (\S+)$", COMPOSE, re.MULTILINE))
    ours = {"execution-events"}
    assert ours < images
    assert [image for image in images - ours if not re.fullmatch(r"[\w/]+:\d[\d.]*", image)] == []


def test_no_password_has_a_default() -> None:
    used = re.findall(r"\$\{(\w*PASSWORD)([^}]*)\}", COMPOSE)
    required = {name for name, rest in used if rest.startswith(":?")}
    assert {name for name, _ in used} == required
    assert {rest for _, rest in used if not rest.startswith(":?")} <= {""}
    assert re.findall(r"PASSWORD: (?!\$\{)", COMPOSE) == []
    assert re.findall(r"postgresql://\w+:(?!\$\{)", COMPOSE) == []


def test_nothing_is_published_beyond_this_machine() -> None:
    published = re.findall(r"ports: \[(.*)\]", COMPOSE)
    assert published
    assert [ports for ports in published if not ports.startswith('"127.0.0.1:')] == []


@pytest.mark.parametrize("command", re.findall(r"^    command: \[(.*)\]$", COMPOSE, re.MULTILINE))
def test_a_service_runs_an_existing_command(command: str) -> None:
    parser().parse_args(re.findall(r"[\w-]+", command))


def test_services_get_existing_settings() -> None:
    variables = re.findall(r"^ +(EXECUTION_EVENTS_\w+):", COMPOSE, re.MULTILINE)
    assert variables
    # The owner's password is for PostgreSQL's own container.
    assert unknown(dict.fromkeys(variables, "")) == ["EXECUTION_EVENTS_OWNER_PASSWORD"]


def test_the_first_start_revokes_the_functions_that_migrate_reports() -> None:
    infra = Path(__file__).parents[2] / "infra"
    script = (infra / "postgresql/init.sh").read_text()
    start = script.index("WHERE pronamespace")
    condition = " ".join(script[start : script.index("\\gexec")].split())
    assert condition in " ".join(load_queries("roles")["unmet"].split())
