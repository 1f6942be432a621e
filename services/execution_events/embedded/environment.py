"""The environment of child processes: without the settings of the shell that started them."""

import os
import re

_SETTINGS = re.compile(
    r"EXECUTION_?EVENTS?_.*|PG.*|KAFKA_.*|CLASSPATH|(JAVA_TOOL|JDK_JAVA|_JAVA)_OPTIONS"
    r"|(https?|ftp|all|no)_proxy",
    re.IGNORECASE,
)


def own_environment() -> dict[str, str]:
    """Return this process's environment without settings, also those of libraries and proxies.

    A shell may have those of a production system.
    """
    return {name: value for name, value in os.environ.items() if not _SETTINGS.fullmatch(name)}
