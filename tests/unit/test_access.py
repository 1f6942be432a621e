"""Authentication: headers, the token file, and JWTs with keys from a real server."""

import asyncio
import hashlib
import json
import logging
import os
import re
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import jwt
import pytest
from prometheus_client import CollectorRegistry
from starlette.datastructures import Headers

from execution_events.errors import SettingsError
from execution_events.metrics import ReaderMetrics
from execution_events.web.auth import issuer as issuer_module
from execution_events.web.auth import key_set
from execution_events.web.auth.access import (
    ANONYMOUS,
    Access,
    AccessError,
    Caller,
    IssuerUnavailableError,
    is_namespace,
)
from execution_events.web.auth.issuer import LEEWAY, Issuer
from execution_events.web.auth.key_set import KeySetError, parse_keys
from execution_events.web.auth.token_file import (
    FILE_MAX_BYTES,
    TokenFile,
    TokenFileError,
    parse_tokens,
)
from tests.support.consumers import until
from tests.support.issuers import (
    AUDIENCE,
    ISSUER,
    KeyServer,
    SigningKey,
    ec_key,
    ed_key,
    forge,
    http_answer,
    rsa_key,
)

TOKEN = "s3cr3t-token"
OTHER = "0ther-token"


def metrics() -> ReaderMetrics:
    return ReaderMetrics(CollectorRegistry())


def hashed(token: str) -> str:
    return hashlib.sha256(token.encode()).hexdigest()


def content(tokens: dict[str, list[str]]) -> str:
    return json.dumps({hashed(token): names for token, names in tokens.items()})


def headers(*pairs: tuple[str, str]) -> Headers:
    return Headers(raw=[(name.encode(), value.encode("latin-1")) for name, value in pairs])


def bearer(token: str) -> Headers:
    return headers(("authorization", f"Bearer {token}"))


async def refusal(access: Access, given: Headers) -> tuple[int, str, dict[str, str]]:
    with pytest.raises(AccessError) as error:
        await access.caller(given)
    return error.value.status_code, error.value.detail, dict(error.value.headers or {})


# Headers.


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "tokens.json"
    path.write_text(content({TOKEN: ["a", "b"], OTHER: []}))
    return path


@pytest.fixture
def registry() -> CollectorRegistry:
    return CollectorRegistry()


@pytest.fixture
def access(path: Path, registry: CollectorRegistry) -> Access:
    gauges = ReaderMetrics(registry)
    return Access(TokenFile(path, gauges), gauges)


@pytest.mark.parametrize(
    "given",
    [
        [("x-auth-token", TOKEN)],
        [("authorization", f"Bearer {TOKEN}")],
        [("authorization", f"bearer   {TOKEN} ")],
        [("x-auth-token", TOKEN), ("authorization", f"BEARER {TOKEN}")],
        [("x-auth-token", TOKEN), ("x-auth-token", TOKEN)],
        [("accept", "*/*"), ("x-auth-token", f" {TOKEN}\t")],
    ],
)
async def test_a_token_is_taken_from_either_header(
    access: Access, given: list[tuple[str, str]]
) -> None:
    caller = await access.caller(headers(*given))
    assert readable(caller) == {"a", "b"}


INVALID = 'Bearer realm="execution-events", error="invalid_token"'


@pytest.mark.parametrize(
    "given",
    [
        [("x-auth-token", "unknown")],
        [("x-auth-token", "")],
        [("x-auth-token", hashed(TOKEN))],
        [("x-auth-token", TOKEN[:-1])],
        [("x-auth-token", TOKEN + "x")],
        [("x-auth-token", "\xff\x80")],
        [("x-auth-token", "x" * 8000)],
        [("authorization", "Bearer")],
        [("authorization", f"Basic {TOKEN}")],
        [("authorization", TOKEN)],
        [("authorization", f"Bearer {TOKEN}, Bearer {TOKEN}")],
        [("x-auth-token", TOKEN), ("authorization", f"Bearer {OTHER}")],
        [("x-auth-token", TOKEN), ("authorization", "Basic x")],
        [("x-auth-token", TOKEN), ("x-auth-token", OTHER)],
        [("x-auth-token", TOKEN), ("x-auth-token", "")],
        [("authorization", f"Bearer {OTHER}"), ("authorization", f"Bearer {TOKEN}")],
    ],
)
async def test_every_wrong_token_has_the_same_answer(
    access: Access, registry: CollectorRegistry, given: list[tuple[str, str]]
) -> None:
    assert await refusal(access, headers(*given)) == (
        401,
        "invalid token",
        {"WWW-Authenticate": INVALID},
    )
    name = "execution_events_refused_total"
    assert registry.get_sample_value(name, {"reason": "bad_token"}) == 1


async def test_a_missing_token_gets_its_own_answer(
    access: Access, registry: CollectorRegistry
) -> None:
    status, message, answered = await refusal(access, headers(("accept", TOKEN)))
    assert status == 401
    assert "X-Auth-Token" in message
    assert answered == {"WWW-Authenticate": 'Bearer realm="execution-events"'}
    name = "execution_events_refused_total"
    assert registry.get_sample_value(name, {"reason": "no_token"}) == 1


async def test_without_credentials_all_requests_have_one_caller() -> None:
    access = Access(None, metrics())
    for given in (headers(), bearer("x"), headers(("x-auth-token", "y"))):
        assert await access.caller(given) is ANONYMOUS
    assert ANONYMOUS.namespaces is None
    assert access.problems() == []


async def test_no_token_is_logged_or_displayed(
    access: Access, path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    caller = await access.caller(bearer(TOKEN))
    other = await access.caller(bearer(OTHER))
    with pytest.raises(AccessError) as refused:
        await access.caller(bearer("unkn0wn"))
    shown = repr((caller, other, access, access._credentials, refused.value, str(refused.value)))
    shown += caplog.text + repr([record.__dict__ for record in caplog.records])
    for secret in (TOKEN, OTHER, "unkn0wn"):
        assert secret not in shown
        assert hashed(secret) not in shown
        assert hashed(secret)[:12] not in shown
    assert caller.limit_key != other.limit_key


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


# The token file.


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


def readable(caller: Caller | None) -> set[str]:
    """The namespaces of a caller that may not read all."""
    assert caller is not None
    assert caller.namespaces is not None
    return set(caller.namespaces)


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
        change(path, content({OTHER: ["a", "b"], TOKEN: []}))

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
    assert [record.getMessage() for record in errors] == ["token_file_reload_failed"]

    if fault == "directory":
        path.rmdir()
    path.write_text(content({TOKEN: ["c"]}))
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


# JWTs.

RSA = rsa_key("rsa")
EC = ec_key("ec")


@pytest.fixture
async def keys() -> AsyncIterator[KeyServer]:
    server = KeyServer()
    server.keys = [RSA.jwk, EC.jwk]
    async with server.serve():
        yield server


@asynccontextmanager
async def issuing(server: KeyServer, claim: str = "namespaces") -> AsyncIterator[Issuer]:
    async with Issuer.open(server.url, AUDIENCE, ISSUER, claim, metrics()) as issuer:
        yield issuer


async def called(issuer: Issuer, token: str) -> Caller | None:
    return await issuer.caller(token.encode())


@pytest.mark.parametrize(
    "key",
    [RSA, EC, rsa_key("ps", "PS256"), rsa_key("512", "RS512"), ed_key("ed")],
    ids=lambda key: key.algorithm,
)
async def test_a_token_signed_by_the_issuer_is_valid(keys: KeyServer, key: SigningKey) -> None:
    keys.keys = [key.jwk]
    async with issuing(keys) as issuer:
        caller = await called(issuer, key.sign(namespaces=["a", "租户"]))
        assert readable(caller) == {"a", "租户"}


@pytest.mark.parametrize(
    ("claims", "expected"),
    [
        ({}, set()),
        ({"namespaces": []}, set()),
        ({"namespaces": "a"}, {"a"}),
        ({"namespaces": {"a": 1}}, set()),
        ({"namespaces": 7}, set()),
        ({"namespaces": True}, set()),
        ({"namespaces": ["a", 1, None, ["b"], "", "a\0", "\ud800", "x" * 254]}, {"a"}),
        ({"namespaces": ["*"]}, {"*"}),
    ],
)
async def test_the_claim_gives_the_namespaces(
    keys: KeyServer, claims: dict[str, Any], expected: set[str]
) -> None:
    async with issuing(keys) as issuer:
        caller = await called(issuer, EC.sign(**claims))
        assert readable(caller) == expected


async def test_the_name_of_the_claim_is_a_setting(keys: KeyServer) -> None:
    async with issuing(keys, claim="https://issuer.example/projects") as issuer:
        given: dict[str, Any] = {"https://issuer.example/projects": ["a"], "namespaces": ["b"]}
        token = EC.sign(**given)
        caller = await called(issuer, token)
        assert readable(caller) == {"a"}


async def test_all_tokens_of_a_subject_share_one_limit(keys: KeyServer) -> None:
    async with issuing(keys) as issuer:
        callers = [
            await called(issuer, EC.sign(sub=subject, jti=jti))
            for subject, jti in [("a", "1"), ("a", "2"), ("b", "3"), (None, "4"), (None, "5")]
        ]
        found = [caller.limit_key for caller in callers if caller is not None]
        assert found[0] == found[1]
        assert len(set(found)) == 4
        assert all(re.fullmatch("jwt:[0-9a-f]{16}", key) for key in found)


def late(seconds: int) -> dict[str, Any]:
    return {"exp": int(time.time()) + seconds}


@pytest.mark.parametrize(
    "claims",
    [
        lambda: late(-LEEWAY - 2),
        lambda: late(-100_000),
        lambda: {"exp": None},
        lambda: {"exp": "soon"},
        lambda: {"exp": float("inf")},
        lambda: {"nbf": int(time.time()) + LEEWAY + 5},
        lambda: {"iat": int(time.time()) + LEEWAY + 5},
        lambda: {"aud": "another"},
        lambda: {"aud": None},
        lambda: {"aud": ["another", "third"]},
        lambda: {"aud": AUDIENCE + "x"},
        lambda: {"iss": "https://other.example"},
        lambda: {"iss": None},
        lambda: {"iss": ISSUER + "/"},
        lambda: {"iss": [ISSUER]},
    ],
    ids=["expired", "long expired", "no exp", "exp text", "exp inf", "not yet", "from later",
         "aud", "no aud", "auds", "aud longer", "iss", "no iss", "iss longer", "iss list"],
)  # fmt: skip
async def test_a_token_with_a_wrong_claim_is_refused(
    keys: KeyServer, claims: Callable[[], dict[str, Any]]
) -> None:
    async with issuing(keys) as issuer:
        assert await called(issuer, EC.sign(**claims())) is None


@pytest.mark.parametrize(
    "claims",
    [lambda: late(-LEEWAY + 10), lambda: {"nbf": int(time.time()) + LEEWAY - 10},
     lambda: {"aud": ["other", AUDIENCE]}],
    ids=["expired", "not yet", "audiences"],
)  # fmt: skip
async def test_clocks_may_differ_by_the_leeway(
    keys: KeyServer, claims: Callable[[], dict[str, Any]]
) -> None:
    async with issuing(keys) as issuer:
        assert await called(issuer, EC.sign(**claims())) is not None


def claims() -> dict[str, Any]:
    return {"iss": ISSUER, "aud": AUDIENCE, "exp": int(time.time()) + 300, "namespaces": ["a"]}


DEEP = "[" * 6000 + "]" * 6000


@pytest.mark.parametrize(
    "token",
    [
        lambda: forge({"alg": "none", "kid": "rsa"}, claims(), None),
        lambda: forge({"alg": "None", "kid": "rsa"}, claims(), None),
        lambda: forge({"alg": "HS256", "kid": "rsa"}, claims(), RSA.pem),
        lambda: forge({"alg": "HS256", "kid": "ec"}, claims(), EC.pem),
        lambda: forge({"alg": "HS256", "kid": "rsa"}, claims(), json.dumps(RSA.jwk).encode()),
        lambda: forge({"alg": "RS256", "kid": "rsa"}, claims(), RSA.pem),
        lambda: forge({"kid": "rsa"}, claims(), None),
        lambda: jwt.encode(claims(), RSA.private, "RS256", headers={"kid": "ec"}),
        lambda: jwt.encode(claims(), EC.private, "ES256", headers={"kid": "rsa"}),
        lambda: ec_key("ec").sign(),
        lambda: rsa_key("rsa").sign(),
        lambda: ec_key("ec").sign(headers={"jwk": EC.jwk, "jku": "http://127.0.0.1/"}),
        lambda: EC.sign(headers={"kid": "other"}),
        lambda: EC.sign(headers={"crit": ["exp"]}),
        lambda: jwt.encode(claims(), EC.private, "ES256"),
        lambda: forge({"alg": "RS256", "kid": ["rsa"]}, claims(), None),
        lambda: forge({"alg": "RS256", "kid": "rsa", "x": "\ud800"}, claims(), None),
        lambda: EC.sign()[:-4],
        lambda: EC.sign() + ".",
        lambda: EC.sign() + "=",
        lambda: "." + EC.sign(),
        lambda: "..",
        lambda: "",
        lambda: "\xff.\xfe.\xfd",
        lambda: TOKEN,
        lambda: issuer_nested(DEEP),
    ],
    ids=["none", "None", "HS256 of RSA", "HS256 of EC", "HS256 of JWK", "HMAC as RS256", "no alg",
         "RS256 as EC", "ES256 as RSA", "another EC", "another RSA", "own jwk", "unknown kid",
         "crit", "no kid of two", "kid list", "surrogate", "cut", "four parts", "padding",
         "empty header", "dots", "empty", "bytes", "no JWT", "nested"],
)  # fmt: skip
async def test_a_forged_or_malformed_token_is_refused(
    keys: KeyServer, token: Callable[[], str]
) -> None:
    async with issuing(keys) as issuer:
        assert await issuer.caller(token().encode("latin-1")) is None


def issuer_nested(header: str) -> str:
    encoded = jwt.utils.base64url_encode(header.encode()).decode()
    return f"{encoded}.{encoded}.x"


async def test_a_short_rsa_key_is_not_trusted(keys: KeyServer) -> None:
    key = rsa_key("short", bits=1024)
    keys.keys = [key.jwk]
    async with issuing(keys) as issuer:
        with pytest.warns(jwt.warnings.InsecureKeyLengthWarning):
            token = key.sign()
        assert await called(issuer, token) is None


async def test_a_token_without_a_key_id_is_verified_with_the_only_key(keys: KeyServer) -> None:
    keys.keys = [EC.jwk]
    async with issuing(keys) as issuer:
        assert await called(issuer, jwt.encode(claims(), EC.private, "ES256")) is not None


def test_keys_that_cannot_verify_are_ignored() -> None:
    members = [
        {"kty": "oct", "kid": "shared", "k": "AAAA"},
        RSA.jwk | {"kid": "encrypts", "use": "enc"},
        RSA.jwk | {"kid": "symmetric", "alg": "HS256"},
        RSA.jwk | {"kid": "wrong", "alg": "ES256"},
        EC.jwk | {"kid": "curve", "crv": "P-999"},
        EC.jwk | {"kid": "cut", "x": "AA"},
        EC.jwk | {"kid": ["list"]},
        {"kty": "RSA", "kid": "empty"},
        {"kty": ["RSA"]},
        {},
        RSA.jwk,
    ]
    assert list(parse_keys(json.dumps({"keys": members}).encode())) == ["rsa"]


@pytest.mark.parametrize(
    "answer",
    [b"", b"{}", b"[]", b'{"keys": []}', b'{"keys": {}}', b'{"keys": [1]}', b"\xff",
     b'{"keys": [{"kty": "oct", "k": "AAAA"}]}', b'{"keys": ' + b"[" * 100_000],
)  # fmt: skip
def test_a_response_without_keys_is_no_key_set(answer: bytes) -> None:
    with pytest.raises(KeySetError):
        parse_keys(answer)


async def test_an_unknown_key_id_triggers_one_shared_fetch(
    keys: KeyServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(issuer_module, "_REFETCH_INTERVAL", 0.0)
    new = ec_key("new")
    async with issuing(keys) as issuer:
        assert await called(issuer, EC.sign()) is not None
        assert keys.requests == 1
        keys.keys = [new.jwk]
        tokens = [called(issuer, new.sign()) for _ in range(20)]
        assert None not in await asyncio.gather(*tokens)
        assert keys.requests == 2
        assert await called(issuer, EC.sign()) is None


async def test_fetches_for_unknown_key_ids_are_rate_limited(keys: KeyServer) -> None:
    async with issuing(keys) as issuer:
        for number in range(50):
            assert await called(issuer, ec_key(f"unknown-{number}").sign()) is None
        assert keys.requests == 1


async def test_a_withdrawn_key_is_dropped_at_the_next_refresh(
    keys: KeyServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(issuer_module, "REFRESH_INTERVAL", 0.01)
    async with issuing(keys) as issuer:
        keys.keys = [RSA.jwk]

        async def dropped() -> bool:
            return await called(issuer, EC.sign()) is None

        await until(dropped, "the withdrawn key is dropped")


async def test_known_keys_stay_in_force_while_the_issuer_is_unavailable(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(issuer_module, "_REFETCH_INTERVAL", 0.0)
    server = KeyServer()
    server.keys = [EC.jwk]
    new = ec_key("new")
    async with (
        server.serve(),
        Issuer.open(server.url, AUDIENCE, ISSUER, "namespaces", metrics()) as issuer,
    ):
        port = server.port
        server.answer = lambda: http_answer(b"", "503 Service Unavailable")
        with pytest.raises(IssuerUnavailableError) as unavailable:
            await called(issuer, new.sign())
        assert unavailable.value.status_code == 503
        assert dict(unavailable.value.headers or {}) == {"Retry-After": "1"}
        await issuer.refresh()
        assert await called(issuer, EC.sign()) is not None
        assert issuer.problems() == []
        assert port == server.port
        server.keys.append(new.jwk)
        server.answer = server._answer
        assert await called(issuer, new.sign()) is not None


async def test_a_reader_starts_unready_while_the_issuer_is_unavailable(
    unused_port: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(issuer_module, "_REFETCH_INTERVAL", 0.05)
    server = KeyServer()
    server.keys = [EC.jwk]
    url = f"http://127.0.0.1:{unused_port}/keys?set=1"
    async with Issuer.open(url, AUDIENCE, ISSUER, "namespaces", metrics()) as issuer:
        [problem] = issuer.problems()
        assert problem == "the issuer's keys are unknown: fetch failed: ConnectionRefusedError"
        with pytest.raises(IssuerUnavailableError):
            await called(issuer, EC.sign())
        async with server.serve(unused_port):

            async def ready() -> bool:
                return issuer.problems() == []

            await until(ready, "the keys are fetched")
            assert await called(issuer, EC.sign()) is not None


BIG = b"HTTP/1.1 200 OK\r\n\r\n" + b" " * (key_set.KEY_SET_MAX_BYTES + 1)


@pytest.mark.parametrize(
    ("answer", "problem"),
    [
        (http_answer(b"{}", "500 x"), "expected status 200, got 500"),
        (http_answer(b"", "302 x"), "expected status 200, got 302"),
        (BIG, "expected at most 1048576 bytes"),
        (b"SSH-2.0\r\n", "fetch failed: RemoteProtocolError"),
        (b"", "fetch failed: RemoteProtocolError"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nx", "RemoteProtocolError"),
        (b"HTTP/1.1 200 OK\r\nX: " + b"x" * 2**18, "RemoteProtocolError"),
    ],
    ids=["500", "redirect", "size", "no HTTP", "closed", "cut", "head"],
)
async def test_a_failed_fetch_is_a_problem_with_its_cause(
    keys: KeyServer, answer: bytes, problem: str
) -> None:
    keys.answer = lambda: answer
    async with issuing(keys) as issuer:
        [reported] = issuer.problems()
        assert problem in reported


async def test_a_silent_issuer_does_not_exceed_the_fetch_timeout(
    keys: KeyServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(key_set, "FETCH_TIMEOUT", 0.2)
    keys.silent = True
    started = time.monotonic()
    async with issuing(keys) as issuer:
        assert time.monotonic() - started < 2
        assert "no response within 0.2 s" in issuer.problems()[0]


@pytest.mark.parametrize("before", [b"", b"HTTP/1.1 200 OK\r\n\r\n"], ids=["head", "body"])
async def test_a_dripping_issuer_does_not_exceed_the_fetch_timeout(
    before: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A byte now and then restarts no timeout."""

    async def drip(source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
        with suppress(ConnectionError):
            sink.write(before)
            while not source.at_eof():
                sink.write(b"H" if not before else b" ")
                await sink.drain()
                with suppress(TimeoutError):
                    async with asyncio.timeout(0.02):
                        await source.read(65536)
        sink.close()

    monkeypatch.setattr(key_set, "FETCH_TIMEOUT", 0.2)
    server = await asyncio.start_server(drip, "127.0.0.1", 0)
    async with server:
        port = server.sockets[0].getsockname()[1]
        url = f"http://127.0.0.1:{port}/keys"
        started = time.monotonic()
        async with Issuer.open(url, AUDIENCE, ISSUER, "namespaces", metrics()) as issuer:
            assert time.monotonic() - started < 2
            assert "no response within 0.2 s" in issuer.problems()[0]


async def test_a_cancelled_caller_does_not_cancel_the_shared_fetch(
    keys: KeyServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with issuing(keys) as issuer:
        monkeypatch.setattr(issuer_module, "_REFETCH_INTERVAL", 0.0)
        new = ec_key("new")
        keys.keys = [new.jwk]
        first = asyncio.create_task(called(issuer, new.sign()))
        second = asyncio.create_task(called(issuer, new.sign()))
        while issuer._fetching is None or issuer._fetching.done():
            await asyncio.sleep(0)
        first.cancel()
        assert await second is not None
