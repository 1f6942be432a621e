"""Corrections to aiokafka's low-level client that every client of ours needs.

They know aiokafka 0.14 from the inside, which the dependency's bounds demand.
"""

from typing import Any

from aiokafka.client import AIOKafkaClient
from aiokafka.protocol.metadata import MetadataRequest


def forbid_topic_creation(client: AIOKafkaClient) -> None:
    """Keep `client` from creating topics, also where the broker has auto.create.topics.enable.

    A metadata request that names a topic creates it there, unless the request forbids it, and
    aiokafka has no option for that. Only this client is changed: a worker's own ones are not.
    Call it before the client starts.
    """
    connect = client._get_conn

    async def connect_without_creation(*arguments: Any, **options: Any) -> Any:
        connection = await connect(*arguments, **options)
        # Set on the connection, because the client takes it from its own table to send.
        if connection is not None and "send" not in vars(connection):
            connection.send = _without_creation(connection.send)
        return connection

    client._get_conn = connect_without_creation


def _without_creation(send: Any) -> Any:
    def send_without_creation(request: Any, *arguments: Any, **options: Any) -> Any:
        if isinstance(request, MetadataRequest):
            request._allow_auto_topic_creation = False
        return send(request, *arguments, **options)

    return send_without_creation
