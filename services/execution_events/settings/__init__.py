"""The settings: read once from a mapping such as `os.environ`, and passed down in groups.

Each setting is an environment variable `EXECUTION_EVENTS_…`; a secret can also come from the file
that `EXECUTION_EVENTS_…_FILE` names.

- `groups`: the settings as values.
- `values`: the parsers of values.
- `environment`: settings from the environment, and back.
"""

from execution_events.settings.environment import (
    SettingInfo,
    describe,
    load,
    misspelt,
    variables,
)
from execution_events.settings.groups import (
    PREFIX,
    TOPIC_PARTITIONS,
    TOPIC_RETENTION_DAYS,
    AuthSettings,
    ConsumerSettings,
    DatabaseSettings,
    KafkaSettings,
    LogSettings,
    ManagementSettings,
    PublisherSettings,
    ReaderSettings,
    Settings,
    variable_of,
)

__all__ = [
    "PREFIX",
    "TOPIC_PARTITIONS",
    "TOPIC_RETENTION_DAYS",
    "AuthSettings",
    "ConsumerSettings",
    "DatabaseSettings",
    "KafkaSettings",
    "LogSettings",
    "ManagementSettings",
    "PublisherSettings",
    "ReaderSettings",
    "SettingInfo",
    "Settings",
    "describe",
    "load",
    "misspelt",
    "variable_of",
    "variables",
]
