"""A broker with an authorizer."""

from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

from aiokafka.protocol.admin import CreateAclsRequest, DeleteAclsRequest

from execution_events.embedded import EmbeddedKafka
from execution_events.embedded.directory import HOST
from execution_events.embedded.kafka import Node, server_properties
from execution_events.kafka.topic import open_admin
from execution_events.settings import Settings
from tests.support.configuration import configured
from tests.support.servers import broker_in, data_directory

_USER, _PASSWORD = "limited", "a-password"
_ANY_HOST, _LITERAL, _ALLOW = "*", 3, 3
_RESOURCES = {"topic": 2, "group": 3, "cluster": 4}
_OPERATIONS = {
    "Read": 3,
    "Write": 4,
    "Create": 5,
    "Alter": 7,
    "Describe": 8,
    "DescribeConfigs": 10,
    "AlterConfigs": 11,
}


@dataclass(frozen=True)
class GuardedBroker:
    """A broker with two listeners: one allows everything, the other what its user was granted."""

    kafka: EmbeddedKafka
    guarded_port: int

    def unlimited(self, settings: Settings) -> Settings:
        """Return the settings for the listener that allows everything."""
        return configured(settings, kafka_bootstrap_servers=self.kafka.bootstrap_servers)

    def limited(self, settings: Settings) -> Settings:
        """Return the settings of the user, which has no rights until `grant`."""
        return configured(
            settings,
            kafka_bootstrap_servers=f"{HOST}:{self.guarded_port}",
            kafka_security_protocol="SASL_PLAINTEXT",
            kafka_sasl_username=_USER,
            kafka_sasl_password=_PASSWORD,
        )

    async def grant(self, name: str, *operations: str, resource: str = "topic") -> None:
        """Allow the user operations on a topic, a group or the cluster ("kafka-cluster")."""
        for operation in operations:
            response = await self._change(CreateAclsRequest, name, operation, resource)
            [(code, message)] = response.creation_responses
            assert code == 0, message

    async def revoke(self, name: str, *operations: str, resource: str = "topic") -> None:
        """Revoke what was granted."""
        for operation in operations:
            response = await self._change(DeleteAclsRequest, name, operation, resource)
            [(code, message, matching)] = response.filter_responses
            assert code == 0, message
            assert len(matching) == 1

    async def _change(self, request_type: Any, name: str, operation: str, resource: str) -> Any:
        settings = configured(kafka_bootstrap_servers=self.kafka.bootstrap_servers)
        async with open_admin(settings.kafka) as admin:
            return await admin._send_to_controller(
                request_type(
                    resource_type=_RESOURCES[resource],
                    resource_name=name,
                    resource_pattern_type_filter=_LITERAL,
                    principal=f"User:{_USER}",
                    host=_ANY_HOST,
                    operation=_OPERATIONS[operation],
                    permission_type=_ALLOW,
                )
            )


@asynccontextmanager
async def guarded_broker(
    properties: Mapping[str, str] | None = None,
) -> AsyncIterator[GuardedBroker]:
    """A guarded broker that is ready; `properties` override its own."""
    async with data_directory() as directory:
        # A second listener beside the product's own, whose ports stay the same.
        port, guarded_port = directory.port("kafka"), directory.port("kafka-guarded")
        node = Node(1, port, directory.port("kafka-controller"))
        own = server_properties(node, [node])
        listeners = f"{own['listeners']},GUARDED://{HOST}:{guarded_port}"
        kafka = broker_in(
            directory,
            port=port,
            properties={
                "listeners": listeners,
                "advertised.listeners": listeners,
                "listener.security.protocol.map": (
                    f"{own['listener.security.protocol.map']},GUARDED:SASL_PLAINTEXT"
                ),
                "listener.name.guarded.sasl.enabled.mechanisms": "PLAIN",
                "listener.name.guarded.plain.sasl.jaas.config": (
                    "org.apache.kafka.common.security.plain.PlainLoginModule required"
                    f' user_{_USER}="{_PASSWORD}";'
                ),
                "authorizer.class.name": (
                    "org.apache.kafka.metadata.authorizer.StandardAuthorizer"
                ),
                # Clients of the listeners without authentication.
                "super.users": "User:ANONYMOUS",
            }
            | dict(properties or {}),
        )
        async with kafka:
            yield GuardedBroker(kafka, guarded_port)
