"""The settings and the environment: reading, describing and writing variables."""

import dataclasses
from collections import defaultdict
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlsplit

from execution_events.errors import SettingsError
from execution_events.settings import values
from execution_events.settings.groups import (
    PREFIX,
    AuthSettings,
    KafkaSettings,
    Settings,
    variable_of,
)
from execution_events.text import one_line


class SettingInfo(NamedTuple):
    """One setting as `execution-events settings` shows it; `value` holds no secret."""

    variable: str
    value: str | None
    source: str
    doc: str


class _Setting(NamedTuple):
    """A field of a group, or of `Settings` itself where `group` is None."""

    group: str | None
    field: dataclasses.Field[Any]

    @property
    def variable(self) -> str:
        return variable_of(self.field.metadata["variable"])

    def value(self, settings: Settings) -> Any:
        owner = settings if self.group is None else getattr(settings, self.group)
        return getattr(owner, self.field.name)


def _all_settings() -> Iterator[_Setting]:
    for outer in dataclasses.fields(Settings):
        if "variable" in outer.metadata:
            yield _Setting(None, outer)
        else:
            for field in dataclasses.fields(outer.default):  # type: ignore[arg-type]
                yield _Setting(outer.name, field)


def load(environ: Mapping[str, str]) -> Settings:
    """Return the settings in `environ`; raise a `SettingsError` that names a wrong variable."""
    groups: dict[str, dict[str, Any]] = defaultdict(dict)
    own: dict[str, Any] = {}
    for setting in _all_settings():
        found = _find(setting, environ)
        if found is not None:
            variable, text = found
            metadata = setting.field.metadata
            try:
                value = metadata["parse"](text)
            except ValueError as error:
                shown = "" if metadata["secret"] else f', not "{one_line(text)}"'
                raise SettingsError(f"{variable}: {error}{shown}") from error
            (own if setting.group is None else groups[setting.group])[setting.field.name] = value
    settings = dataclasses.replace(Settings(), **own)
    for name, given in groups.items():
        group = dataclasses.replace(getattr(settings, name), **given)
        settings = dataclasses.replace(settings, **{name: group})
    _check_kafka(settings.kafka)
    _check_auth(settings.auth)
    return settings


def _check_kafka(kafka: KafkaSettings) -> None:
    if kafka.security_protocol.startswith("SASL") and None in (
        kafka.sasl_username,
        kafka.sasl_password,
    ):
        raise SettingsError(
            f"{PREFIX}KAFKA_SECURITY_PROTOCOL: {kafka.security_protocol} needs "
            f"{PREFIX}KAFKA_SASL_USERNAME and {PREFIX}KAFKA_SASL_PASSWORD"
        )


def _check_auth(auth: AuthSettings) -> None:
    if auth.tokens_file is not None and auth.jwks_url is not None:
        raise SettingsError(
            f"{PREFIX}JWKS_URL and {PREFIX}TOKENS_FILE are both set: set one of them"
        )
    if auth.jwks_url is not None and None in (auth.jwt_audience, auth.jwt_issuer):
        raise SettingsError(
            f"{PREFIX}JWKS_URL needs {PREFIX}JWT_AUDIENCE and {PREFIX}JWT_ISSUER: "
            "without them tokens issued for other services would be accepted"
        )


def describe(environ: Mapping[str, str]) -> Iterator[SettingInfo]:
    """Yield every setting with its value and source; secrets are hidden."""
    settings = load(environ)
    for setting in _all_settings():
        found = _find(setting, environ)
        value = setting.value(settings)
        yield SettingInfo(
            variable=setting.variable,
            value=None if value is None else _shown(setting.field, str(value)),
            source="default" if found is None else found[0],
            doc=setting.field.metadata["doc"],
        )


def variables(settings: Settings) -> dict[str, str]:
    """Return the environment that `load` reads these settings from, without defaults."""
    return {
        setting.variable: str(value)
        for setting in _all_settings()
        if (value := setting.value(settings)) != setting.field.default
    }


def unknown(environ: Mapping[str, str]) -> list[str]:
    """Return the variables with our prefix that are not settings, sorted."""
    known = set()
    for setting in _all_settings():
        known.add(setting.variable)
        if setting.field.metadata["secret"]:
            known.add(f"{setting.variable}_FILE")
    return sorted(
        name
        for name in environ
        if name.startswith(PREFIX) and not name.startswith(f"{PREFIX}TEST_") and name not in known
    )


def _find(setting: _Setting, environ: Mapping[str, str]) -> tuple[str, str] | None:
    variable = setting.variable
    file_variable = f"{variable}_FILE"
    if setting.field.metadata["secret"] and file_variable in environ:
        if variable in environ:
            raise SettingsError(f"{file_variable} and {variable} are both set: set one of them")
        try:
            return file_variable, Path(environ[file_variable]).read_text().strip()
        except (OSError, UnicodeDecodeError) as error:
            raise SettingsError(f"{file_variable}: cannot read the file: {error}") from error
    if variable in environ:
        return variable, environ[variable]
    return None


def _shown(field: dataclasses.Field[Any], value: str) -> str:
    if not field.metadata["secret"]:
        return value
    if field.metadata["parse"] is values.database_url:
        url = urlsplit(value)
        host = url.netloc.rpartition("@")[2]
        user = f"{url.username}:***@" if url.username else ""
        return f"{url.scheme}://{user}{host}{url.path}"
    return "***"
