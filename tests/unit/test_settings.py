"""Settings: each is described, a wrong one is named, and no secret is shown."""

import json
from pathlib import Path

import pytest

from execution_events import Publisher, sync
from execution_events.errors import SettingsError
from execution_events.kafka.connection import client_options
from execution_events.settings import PREFIX, Settings, describe, load, misspelt, variable_of
from tests.support.configuration import configured, each_setting, value_of
from tests.support.logs import logging_to

FIELDS = [(variable, field) for variable, _, field in each_setting()]
SECRETS = [variable for variable, field in FIELDS if field.metadata["secret"]]
DATABASE_URL = variable_of("database_url")
HIDDEN = "s3cr3t"


def shown(environ: dict[str, str], variable: str) -> str | None:
    """Return the value of a variable in `describe`."""
    [value] = [setting.value for setting in describe(environ) if setting.variable == variable]
    return value


def refusal(environ: dict[str, str]) -> str:
    """Return the error that refuses the settings: one line."""
    with pytest.raises(SettingsError) as refused:
        load(environ)
    message = str(refused.value)
    assert message.isprintable()
    return message


def test_an_empty_environment_gives_the_defaults() -> None:
    assert load({}) == Settings()
    assert load({"READER_PORT": "1", "execution_events_reader_port": "1"}) == Settings()


def test_every_setting_is_described_once_in_one_line() -> None:
    settings = list(describe({}))
    assert [setting.variable for setting in settings] == [
        f"{PREFIX}{variable.upper()}" for variable, _ in FIELDS
    ]
    for setting, (_, field) in zip(settings, FIELDS, strict=True):
        assert setting.doc
        assert setting.doc.isprintable()
        assert setting.source == "default"
        assert setting.value == (None if field.default is None else str(field.default))


def test_every_default_is_a_valid_value() -> None:
    written = {
        variable_of(name): str(field.default) for name, field in FIELDS if field.default is not None
    }
    assert load(written) == Settings()


def test_a_setting_is_read_and_has_its_source() -> None:
    variable = variable_of("reader_port")
    assert load({variable: "9000"}).reader.port == 9000
    [setting] = [setting for setting in describe({variable: "9000"}) if setting.value == "9000"]
    assert (setting.variable, setting.source) == (variable, variable)


def test_passwords_and_addresses_with_passwords_are_secrets() -> None:
    passwords = [name for name, _ in FIELDS if name.endswith("password")]
    assert sorted(SECRETS) == sorted(["database_url", *passwords])


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("reader_port", "http"),
        ("reader_port", ""),
        ("reader_port", "-1"),
        ("reader_port", "65536"),
        ("reader_port", " 80"),
        ("reader_port", "8_0"),
        ("reader_port", "８０"),
        ("reader_port", "9" * 5000),
        ("batch_max_records", "0"),
        ("batch_max_records", "1000001"),
        ("stop_timeout", "2.5"),
        ("spool_max_bytes", "1048575"),
        ("spool_max_bytes", "1G"),
        ("spool_full", "drop"),
        ("publish_timeout", "0"),
        ("close_timeout", "0"),
        ("kafka_security_protocol", "ssl"),
        ("kafka_sasl_mechanism", "GSSAPI"),
        ("log_level", "trace"),
        ("log_format", "xml"),
        ("topic", ""),
        ("topic", "a\nb"),
        ("kafka_bootstrap_servers", "\x1b[31m"),
    ],
)
def test_a_wrong_value_is_one_line_that_names_the_variable(field: str, value: str) -> None:
    message = refusal({variable_of(field): value})
    assert message.startswith(f"{variable_of(field)}: ")
    escaped = value.encode("unicode_escape").decode()
    assert f'"{value if value.isprintable() else escaped}"' in message


@pytest.mark.parametrize(
    ("field", "low", "high"),
    [
        ("reader_port", 0, 65535),
        ("batch_max_records", 1, 1_000_000),
        ("stall_timeout", 1, 86400),
    ],
)
def test_a_number_has_limits(field: str, low: int, high: int) -> None:
    variable = variable_of(field)
    for number in (low, high):
        assert value_of(load({variable: str(number)}), field) == number
    for number in (low - 1, high + 1):
        assert f"from {low} to {high}" in refusal({variable: str(number)})


@pytest.mark.parametrize("given", [{}, {"username": "u"}, {"password": HIDDEN}])
def test_sasl_needs_a_user_and_a_password(given: dict[str, str]) -> None:
    environ = {variable_of(f"kafka_sasl_{name}"): value for name, value in given.items()}
    environ[variable_of("kafka_security_protocol")] = "SASL_SSL"
    message = refusal(environ)
    assert variable_of("kafka_sasl_username") in message
    assert variable_of("kafka_sasl_password") in message
    assert HIDDEN not in message


def test_a_required_address_is_named() -> None:
    with pytest.raises(SettingsError, match=f"^{DATABASE_URL} is not set: "):
        Settings().database.require_url()


def test_an_unreadable_certificate_is_named(tmp_path: Path) -> None:
    settings = configured(
        kafka_security_protocol="SSL", kafka_ssl_ca_file=str(tmp_path / "absent.pem")
    )
    with pytest.raises(SettingsError, match=r"KAFKA_SSL_.*_FILE: .*No such file"):
        client_options(settings.kafka)


JWKS = {
    variable_of("jwks_url"): "https://issuer.example/jwks",
    variable_of("jwt_audience"): "a",
    variable_of("jwt_issuer"): "i",
}


def test_a_token_file_and_an_issuer_exclude_each_other() -> None:
    message = refusal({**JWKS, variable_of("tokens_file"): "/tokens"})
    both = f"{variable_of('jwks_url')} and {variable_of('tokens_file')} are both set"
    assert message.startswith(both)


@pytest.mark.parametrize("missing", ["jwt_audience", "jwt_issuer"])
def test_an_issuer_needs_an_audience_and_a_name(missing: str) -> None:
    environ = {name: value for name, value in JWKS.items() if name != variable_of(missing)}
    message = refusal(environ)
    assert message.startswith(f"{variable_of('jwks_url')} needs ")
    assert variable_of(missing) in message


@pytest.mark.parametrize(
    "url",
    ["https://h/k", "https://h", "https://h:8443/a/b.json?c=d&e=%20", "https://[2001:db8::1]/k",
     "http://127.0.0.1:8000/k", "http://[::1]/k", "http://localhost/k"],
)  # fmt: skip
def test_keys_are_fetched_from_a_safe_address(url: str) -> None:
    assert load({**JWKS, variable_of("jwks_url"): url}).auth.jwks_url == url


@pytest.mark.parametrize(
    "url",
    ["http://h/k", "http://127.0.0.1.example/k", "http://127.0.0.1@h/k", "https://", "https:///k",
     "h/k", "file:///k", "https://u:p@h/k", "https://h/k#f", "https://h/a b", "https://h/\r\nX: y",
     "https://h:0/k", "https://h:99999/k", "https://[::1/k", "https://h/é", "HTTPS://h/k"],
)  # fmt: skip
def test_keys_are_not_fetched_from_an_unsafe_address(url: str) -> None:
    message = refusal({**JWKS, variable_of("jwks_url"): url})
    assert message.startswith(f"{variable_of('jwks_url')}: expected https://")


# Secrets.


@pytest.mark.parametrize("field", SECRETS)
def test_a_secret_can_come_from_a_file(field: str, tmp_path: Path) -> None:
    secret = "postgresql://u:p@h/d" if field == "database_url" else "p"
    file = tmp_path / "secret"
    file.write_text(f"{secret}\n")
    environ = {f"{variable_of(field)}_FILE": str(file)}
    assert value_of(load(environ), field) == secret
    [setting] = [s for s in describe(environ) if s.variable == variable_of(field)]
    assert setting.source == f"{variable_of(field)}_FILE"


@pytest.mark.parametrize("field", SECRETS)
def test_a_secret_given_twice_is_refused_without_being_shown(field: str, tmp_path: Path) -> None:
    (tmp_path / "secret").write_text(HIDDEN)
    variable = variable_of(field)
    message = refusal({variable: HIDDEN, f"{variable}_FILE": str(tmp_path / "secret")})
    assert message.startswith(f"{variable}_FILE and {variable} are both set")
    assert HIDDEN not in message


def test_only_a_secret_can_come_from_a_file(tmp_path: Path) -> None:
    (tmp_path / "topic").write_text("other")
    environ = {f"{variable_of('topic')}_FILE": str(tmp_path / "topic")}
    assert load(environ) == Settings()
    assert misspelt(environ) == {f"{variable_of('topic')}_FILE": variable_of("topic")}


def test_an_unreadable_secret_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "latin-1").write_bytes(b"p\xe9")
    for path in (tmp_path / "absent", tmp_path, tmp_path / "latin-1"):
        message = refusal({f"{DATABASE_URL}_FILE": str(path)})
        assert message.startswith(f"{DATABASE_URL}_FILE: cannot read the file {path}: ")


def test_an_empty_secret_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "empty").touch()
    variable = f"{variable_of('ops_password')}_FILE"
    assert refusal({variable: str(tmp_path / "empty")}).startswith(f"{variable}: ")


@pytest.mark.parametrize("field", SECRETS)
def test_a_wrong_secret_is_not_shown(field: str) -> None:
    message = refusal({variable_of(field): f"{HIDDEN}\n"})
    assert message.startswith(f"{variable_of(field)}: ")
    assert HIDDEN not in message


@pytest.mark.parametrize("field", [name for name in SECRETS if name != "database_url"])
def test_a_password_is_hidden(field: str) -> None:
    assert shown({variable_of(field): HIDDEN}, variable_of(field)) == "***"


@pytest.mark.parametrize(
    ("url", "visible"),
    [
        (f"postgresql://u:{HIDDEN}@h/d", "postgresql://u:***@h/d"),
        (f"postgres://u:{HIDDEN}@h:5432/d", "postgres://u:***@h:5432/d"),
        (f"postgresql://u:{HIDDEN}%2F%40%3A@h/d", "postgresql://u:***@h/d"),
        (f"postgresql://u%40x:{HIDDEN}@h/d", "postgresql://u%40x:***@h/d"),
        (f"postgresql://u:{HIDDEN}@[::1]:5432/d", "postgresql://u:***@[::1]:5432/d"),
        (f"postgresql://u:{HIDDEN}@h1:1,h2:2/d", "postgresql://u:***@h1:1,h2:2/d"),
        (f"postgresql://u:{HIDDEN}@h/d?sslmode=require", "postgresql://u:***@h/d"),
        (f"postgresql://h/d?user=u&password={HIDDEN}", "postgresql://h/d"),
        (f"postgresql://:{HIDDEN}@h/d", "postgresql://h/d"),
        ("postgresql://h/d", "postgresql://h/d"),
        ("postgresql:///d", "postgresql:///d"),
    ],
)
def test_a_database_is_shown_without_its_password(url: str, visible: str) -> None:
    assert load({DATABASE_URL: url}).database.url == url
    assert shown({DATABASE_URL: url}, DATABASE_URL) == visible


@pytest.mark.parametrize(
    "url",
    [
        f"mysql://u:{HIDDEN}@h/d",
        f"u:{HIDDEN}@h/d",
        f"postgresql:u:{HIDDEN}@h/d",
        f"host=h user=u password={HIDDEN}",
        f"postgresql://u:{HIDDEN}℀@h/d",
        f"postgresql://u:[{HIDDEN}]@h/d",
        f"postgresql://u:x/{HIDDEN}@h/d",
        f"postgresql://u:{HIDDEN}/x@h/d",
        f"postgresql://u:{HIDDEN}?x@h/d",
        f"postgresql://u:{HIDDEN}#x@h/d",
        f"postgresql://u:{HIDDEN}@[::1/d",
        f"postgresql://u:{HIDDEN}",
    ],
)
def test_an_ambiguous_address_is_refused_without_being_shown(url: str) -> None:
    """A parser could find the password elsewhere than its writer."""
    message = refusal({DATABASE_URL: url})
    assert message.startswith(f"{DATABASE_URL}: ")
    assert HIDDEN not in message


def test_misspelt_variables_are_found_with_the_nearest_setting() -> None:
    wrong = {
        f"{PREFIX}READER_PROT": variable_of("reader_port"),
        f"{PREFIX}DATABSE_URL": DATABASE_URL,
        f"{PREFIX}WRITR_PASSWORD": variable_of("writer_password"),
        f"{PREFIX}DATABASE_URL_FIEL": f"{DATABASE_URL}_FILE",
        f"{PREFIX}TOPIC_FILE": variable_of("topic"),
        "EXECUTION_EVENT_TOPIC": variable_of("topic"),
        "execution_events_group": variable_of("group"),
        f"{PREFIX}UNRELATED_THING": None,
        PREFIX: None,
    }
    right = [*(variable_of(name) for name, _ in FIELDS), f"{PREFIX}TEST_BACKEND", "PATH"]
    right += [f"{variable_of(name)}_FILE" for name in SECRETS]
    assert misspelt(dict.fromkeys([*wrong, *right], "x")) == wrong


@pytest.mark.parametrize("publisher", [Publisher, sync.Publisher])
def test_a_publisher_warns_of_a_misspelt_variable(
    publisher: type[Publisher] | type[sync.Publisher],
) -> None:
    with logging_to("json") as stream:
        publisher.from_settings({f"{PREFIX}TOPC": "other"})
    [entry] = map(json.loads, stream.getvalue().splitlines())
    assert (entry["level"], entry["event"]) == ("warning", "setting_unknown")
    assert (entry["variable"], entry["nearest"]) == (f"{PREFIX}TOPC", variable_of("topic"))


@pytest.mark.parametrize(
    "field",
    ["spool_dir", "kafka_ssl_ca_file", "kafka_ssl_certificate_file", "kafka_ssl_key_file"],
)
def test_a_workers_path_is_made_absolute(
    field: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", "/home/worker")
    paths = {"a/b": str(tmp_path / "a/b"), "~/a": "/home/worker/a", "/a/~": "/a/~"}
    for path, absolute in paths.items():
        for settings in (load({variable_of(field): path}), configured(None, **{field: path})):
            assert value_of(settings, field) == absolute
    assert shown({variable_of(field): "a/b"}, variable_of(field)) == str(tmp_path / "a/b")


def test_an_unknown_home_directory_is_refused() -> None:
    message = refusal({variable_of("spool_dir"): "~no-such-user/spool"})
    assert message.startswith(f"{variable_of('spool_dir')}: ")
    assert message.endswith(" ~no-such-user/spool")
