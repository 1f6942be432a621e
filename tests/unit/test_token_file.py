"""The token file: validation, reload, and tokens that stay in force."""

import json
import logging
import os
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry

from execution_events.errors import SettingsError
from execution_events.metrics import ReaderMetrics
from execution_events.web.auth.access import (
    Access,
    is_namespace,
)
from execution_events.web.auth.token_file import (
    FILE_MAX_BYTES,
    TokenFile,
    TokenFileError,
    parse_tokens,
)
from tests.support.consumers import until
from tests.support.tokens import hashed, readable, token_file

TOKEN = "s3cr3t-token"
OTHER = "0ther-token"


def metrics() -> ReaderMetrics:
    return ReaderMetrics(CollectorRegistry())


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "tokens.json"
    path.write_text(token_file({TOKEN: ["a", "b"], OTHER: []}))
    return path


@pytest.fixture
def registry() -> CollectorRegistry:
    return CollectorRegistry()


async def test_unknown_tokens_take_the_same_comparison(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    compared = []
    tokens = TokenFile(path, metrics())

    def compare(a: bytes, b: bytes) -> bool:
        compared.append((len(a), len(b)))
        return a == b

    monkeypatch.setattr("hmac.compare_digest", compare)
    assert await tokens.caller(TOKEN.encode()) is not None
    assert await tokens.caller(b"unknown") is None
    assert compared == [(32, 32), (32, 32)]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", "expected JSON in UTF-8 (line 1)"),
        ("{", "expected JSON in UTF-8 (line 1)"),
        ('{"a": [}\n', "expected JSON in UTF-8 (line 1)"),
        ("[" * 100_000, "expected JSON in UTF-8"),
        ("[]", "expected an object"),
        ("null", "expected an object"),
        ('{"a": ["n"]}', "entry 1: expected a SHA-256 of 64 digits"),
        (json.dumps({hashed("a").upper(): []}), "entry 1: expected a SHA-256 of 64 digits"),
        (json.dumps({hashed("a") + "\n": []}), "entry 1: expected a SHA-256 of 64 digits"),
        (json.dumps({hashed("a"): "n"}), "entry 1: expected an array of namespaces"),
        (json.dumps({hashed("a"): ["n"], hashed("b"): [1]}), "entry 2: expected an array"),
        (json.dumps({hashed("a"): {"n": 1}}), "entry 1: expected an array"),
        (json.dumps({hashed("a"): [""]}), "entry 1: expected an array"),
        (json.dumps({hashed("a"): ["n\0"]}), "entry 1: expected an array"),
        (json.dumps({hashed("a"): ["\ud800"]}), "entry 1: expected an array"),
        (json.dumps({hashed("a"): ["n" * 254]}), "entry 1: expected an array"),
        (f'{{"{hashed("a")}": [], "{hashed("a")}": ["n"]}}', "entry 2: duplicate token"),
        (json.dumps({hashed("a"): [], hashed(""): ["n"]}), "entry 2: expected a token, got the"),
        (" " * (FILE_MAX_BYTES + 1), f"expected at most {FILE_MAX_BYTES} bytes"),
    ],
)
def test_an_invalid_file_is_refused_without_showing_its_content(text: str, expected: str) -> None:
    with pytest.raises(TokenFileError) as error:
        parse_tokens(text.encode())
    assert str(error.value).startswith(expected)
    assert hashed("a") not in str(error.value)
    assert error.value.__suppress_context__ or error.value.__context__ is None


def test_bytes_that_are_not_utf_8_are_refused() -> None:
    with pytest.raises(TokenFileError, match="UTF-8"):
        parse_tokens(b'{"\xff": []}')


@pytest.mark.parametrize("kind", ["absent", "directory", "broken", "latin-1"])
def test_a_reader_does_not_start_with_an_invalid_file(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "tokens"
    if kind == "directory":
        path.mkdir()
    elif kind != "absent":
        path.write_bytes(b"{" if kind == "broken" else b"\xe9")
    with pytest.raises(SettingsError, match=r"^EXECUTION_EVENTS_TOKENS_FILE: "):
        TokenFile(path, metrics())


async def namespaces(tokens: TokenFile, token: str) -> set[str] | None:
    caller = await tokens.caller(token.encode())
    return None if caller is None else readable(caller)


def rewrite(path: Path, text: str) -> None:
    """Write in place, as an editor does."""
    before = path.stat().st_mtime_ns
    path.write_text(text)
    if path.stat().st_mtime_ns == before:
        os.utime(path, ns=(before + 1, before + 1))


def replace(path: Path, text: str) -> None:
    """Rename another file over it, as a deployment does, with the same time."""
    status = path.stat()
    other = path.with_suffix(".new")
    other.write_text(text)
    os.utime(other, ns=(status.st_atime_ns, status.st_mtime_ns))
    other.rename(path)


@pytest.mark.parametrize("change", [rewrite, replace])
async def test_a_changed_file_is_in_force_without_a_restart(
    path: Path, change: Callable[[Path, str], None]
) -> None:
    async with TokenFile.open(path, metrics()) as tokens:
        assert await namespaces(tokens, OTHER) == set()
        # Same size.
        change(path, token_file({OTHER: ["a", "b"], TOKEN: []}))

        async def changed() -> bool:
            return await namespaces(tokens, OTHER) == {"a", "b"}

        started = time.monotonic()
        await until(changed, "the new file is in force")
        assert time.monotonic() - started < 3
        assert await namespaces(tokens, TOKEN) == set()


async def test_a_removed_token_is_refused(path: Path) -> None:
    tokens = TokenFile(path, metrics())
    rewrite(path, "{}")
    await tokens.refresh()
    assert await namespaces(tokens, TOKEN) is None


@pytest.mark.parametrize("fault", ["broken", "absent", "directory"])
async def test_loaded_tokens_stay_in_force_while_the_file_is_invalid(
    path: Path, registry: CollectorRegistry, fault: str, caplog: pytest.LogCaptureFixture
) -> None:
    gauge = "execution_events_credentials_read_timestamp_seconds"
    tokens = TokenFile(path, ReaderMetrics(registry))
    access = Access(tokens, metrics())
    assert access.problems() == []
    if fault == "broken":
        rewrite(path, f'{{"{hashed(TOKEN)}": ["a"], ')
    else:
        path.unlink()
        if fault == "directory":
            path.mkdir()
    before = registry.get_sample_value(gauge)
    for _ in range(3):
        await tokens.refresh()
        assert await namespaces(tokens, TOKEN) == {"a", "b"}
        [problem] = access.problems()
        assert problem.startswith("token file not reloaded, earlier tokens stay in force: ")
        assert hashed(TOKEN) not in problem
    assert registry.get_sample_value(gauge) == before
    errors = [record for record in caplog.records if record.levelno == logging.ERROR]
    assert [record.__dict__["event"] for record in errors] == ["token_file_reload_failed"]

    if fault == "directory":
        path.rmdir()
    path.write_text(token_file({TOKEN: ["c"]}))
    await tokens.refresh()
    assert access.problems() == []
    assert await namespaces(tokens, TOKEN) == {"c"}


async def test_an_unchanged_file_that_reappears_ends_the_problem(path: Path) -> None:
    tokens = TokenFile(path, metrics())
    path.rename(path.with_suffix(".moved"))
    await tokens.refresh()
    assert tokens.problems()
    path.with_suffix(".moved").rename(path)
    await tokens.refresh()
    assert tokens.problems() == []


async def test_an_unchanged_file_is_not_parsed_again(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tokens = TokenFile(path, metrics())
    monkeypatch.setattr("execution_events.web.auth.token_file.parse_tokens", None)
    await tokens.refresh()
    assert tokens.problems() == []


@pytest.mark.parametrize(
    ("text", "possible"),
    [("n", True), ("租户", True), ("n" * 253, True), ("", False), ("元" * 85, False),
     ("a\0", False), ("\ud800", False)],
)  # fmt: skip
def test_a_namespace_must_be_possible_in_an_event(text: str, possible: bool) -> None:
    assert is_namespace(text) is possible


def test_an_asterisk_alone_is_all_namespaces() -> None:
    content = token_file({"all": ["*"], "twice": ["*", "*"], "both": ["*", "a"], "none": []})
    callers = {
        token: parse_tokens(content.encode())[bytes.fromhex(hashed(token))].caller
        for token in ("all", "twice", "both", "none")
    }
    assert callers["all"].namespaces is callers["twice"].namespaces is None
    assert (readable(callers["both"]), readable(callers["none"])) == ({"*", "a"}, set())
    # Its limits are those of a token.
    assert callers["all"].share == callers["all"].limit_key
