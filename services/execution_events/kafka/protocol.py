"""Requests and options that aiokafka lacks."""

from collections.abc import Mapping
from typing import Any

from aiokafka.admin.config_resource import ConfigResourceType
from aiokafka.client import AIOKafkaClient
from aiokafka.protocol.admin import AlterConfigsResponse_v0
from aiokafka.protocol.api import Request, RequestStruct, Response
from aiokafka.protocol.metadata import MetadataRequest
from aiokafka.protocol.types import Array, Boolean, Int8, Schema, String


def forbid_topic_creation(client: AIOKafkaClient) -> None:
    """Keep `client` from creating topics, even if the broker has auto.create.topics.enable.

    With that option a metadata request creates the topics it names unless a flag forbids that, and
    aiokafka cannot set the flag. A worker's other clients are not affected. Call it before the
    client starts.
    """
    connect = client._get_conn

    async def connect_without_creation(*arguments: Any, **options: Any) -> Any:
        connection = await connect(*arguments, **options)
        # Set on the connection, because the client sends through the connections of its own table.
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


class _IncrementalAlterConfigsResponse(Response):  # type: ignore[misc]
    API_KEY = 44
    API_VERSION = 0
    SCHEMA = AlterConfigsResponse_v0.SCHEMA


class _IncrementalAlterConfigsRequest(RequestStruct):  # type: ignore[misc]
    API_KEY = 44
    API_VERSION = 0
    RESPONSE_TYPE = _IncrementalAlterConfigsResponse
    SCHEMA = Schema(
        (
            "resources",
            Array(
                ("resource_type", Int8),
                ("resource_name", String("utf-8")),
                (
                    "config_entries",
                    Array(
                        ("config_name", String("utf-8")),
                        ("config_operation", Int8),
                        ("config_value", String("utf-8")),
                    ),
                ),
            ),
        ),
        ("validate_only", Boolean),
    )


class IncrementalAlterConfigs(Request[_IncrementalAlterConfigsRequest]):  # type: ignore[misc]
    """A request that sets some configurations of a topic and leaves the others unchanged.

    aiokafka has only AlterConfigs, which resets every configuration it does not name.
    """

    API_KEY = 44
    _SET = 0

    def __init__(self, topic: str, configs: Mapping[str, str]) -> None:
        self._topic = topic
        self._configs = configs

    def build(
        self, request_struct_class: type[_IncrementalAlterConfigsRequest]
    ) -> _IncrementalAlterConfigsRequest:
        entries = [(name, self._SET, value) for name, value in self._configs.items()]
        resource = (ConfigResourceType.TOPIC, self._topic, entries)
        return request_struct_class([resource], False)
