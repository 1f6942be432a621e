"""JWTs with keys from a real server."""

import asyncio
import json
import re
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from typing import Any

import jwt
import pytest
from prometheus_client import CollectorRegistry

from execution_events.metrics import ReaderMetrics
from execution_events.web.auth import issuer as issuer_module
from execution_events.web.auth import key_set
from execution_events.web.auth.access import (
    ANONYMOUS,
    Caller,
    IssuerUnavailableError,
)
from execution_events.web.auth.issuer import LEEWAY, Issuer
from execution_events.web.auth.key_set import KeySetError, parse_keys
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
from tests.support.logs import logging_to
from tests.support.tokens import readable

TOKEN = "s3cr3t-token"


def metrics() -> ReaderMetrics:
    return ReaderMetrics(CollectorRegistry())


RSA = rsa_key("rsa")
EC = ec_key("ec")
ED = ed_key("ed")


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
        ({"namespaces": ["*", "a"]}, {"*", "a"}),
        # Not the only one, although the other is none.
        ({"namespaces": ["*", 1]}, set()),
        ({"namespaces": ["*", ""]}, set()),
    ],
)
async def test_the_claim_gives_the_namespaces(
    keys: KeyServer, claims: dict[str, Any], expected: set[str]
) -> None:
    async with issuing(keys) as issuer:
        caller = await called(issuer, EC.sign(**claims))
        assert readable(caller) == expected


@pytest.mark.parametrize("claim", ["*", ["*"], ["*", "*"]], ids=str)
async def test_an_asterisk_alone_is_all_namespaces(keys: KeyServer, claim: object) -> None:
    async with issuing(keys) as issuer:
        caller = await called(issuer, EC.sign(namespaces=claim))
        assert caller is not None
        assert caller.namespaces is None
        # Its limits are those of a token.
        assert caller.share == caller.limit_key != ANONYMOUS.limit_key


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
    keys, refused = parse_keys(json.dumps({"keys": members}).encode())
    assert list(keys) == ["rsa"]
    assert refused == {}


def private_jwk(key: SigningKey) -> dict[str, Any]:
    algorithm = jwt.get_algorithm_by_name(key.algorithm)
    return {**key.jwk, **json.loads(algorithm.to_jwk(key.private))}


@pytest.mark.parametrize("key", [RSA, EC, ED], ids=lambda key: key.name)
async def test_a_private_key_is_refused_with_a_log_event(keys: KeyServer, key: SigningKey) -> None:
    other = ec_key("other")
    keys.keys = [other.jwk, private_jwk(key)]
    with logging_to("json") as logged:
        async with issuing(keys) as issuer:
            assert await called(issuer, key.sign()) is None
            assert await called(issuer, other.sign()) is not None
            await issuer.refresh()
    [event] = list(map(json.loads, logged.getvalue().splitlines()))
    assert event["event"] == "issuer_key_refused"
    assert (event["key"], event["error"]) == (2, "private key")
    assert private_jwk(key)["d"] not in logged.getvalue()


async def test_keys_with_the_same_id_are_refused_with_a_log_event(keys: KeyServer) -> None:
    one, other, third = ec_key("same"), rsa_key("same"), ec_key("third")
    keys.keys = [one.jwk, third.jwk, other.jwk]
    with logging_to("json") as logged:
        async with issuing(keys) as issuer:
            assert await called(issuer, one.sign()) is None
            assert await called(issuer, other.sign()) is None
            assert await called(issuer, third.sign()) is not None
    events = [json.loads(line) for line in logged.getvalue().splitlines()]
    assert [(e["event"], e["key"], e["error"]) for e in events] == [
        ("issuer_key_refused", number, "duplicate key id") for number in (1, 3)
    ]


def test_the_parts_of_a_private_key_are_refused_one_by_one() -> None:
    for part in ("d", "p", "q", "dp", "dq", "qi", "oth"):
        content = json.dumps({"keys": [EC.jwk, RSA.jwk | {part: "AQAB"}]}).encode()
        assert list(parse_keys(content).keys) == ["ec"]


def test_a_key_set_of_refused_keys_names_each_reason() -> None:
    content = json.dumps({"keys": [private_jwk(RSA)]}).encode()
    with pytest.raises(KeySetError, match=r"no acceptable signing key; key 1: private key"):
        parse_keys(content)


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
