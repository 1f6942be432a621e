"""Connection options of every client: addresses, TLS and SASL."""

import ssl
from typing import Any

from execution_events.errors import SettingsError
from execution_events.settings import PREFIX, KafkaSettings


def client_options(settings: KafkaSettings) -> dict[str, Any]:
    """Return the connection arguments that every aiokafka client takes.

    Raises `SettingsError` if a certificate file cannot be used.
    """
    protocol = settings.security_protocol
    options: dict[str, Any] = {
        "bootstrap_servers": settings.bootstrap_servers,
        "security_protocol": protocol,
    }
    if protocol.startswith("SASL"):
        options |= {
            "sasl_mechanism": settings.sasl_mechanism,
            "sasl_plain_username": settings.sasl_username,
            "sasl_plain_password": settings.sasl_password,
        }
    if protocol.endswith("SSL"):
        try:
            context = ssl.create_default_context(cafile=settings.ssl_ca_file)
            if settings.ssl_certificate_file is not None:
                context.load_cert_chain(settings.ssl_certificate_file, settings.ssl_key_file)
        except (OSError, ssl.SSLError) as error:
            raise SettingsError(f"{PREFIX}KAFKA_SSL_…_FILE: {error}") from error
        options["ssl_context"] = context
    return options
