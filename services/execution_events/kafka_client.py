"""aiokafka 0.14's client from the inside, for publisher and consumer alike."""

from functools import partial
from types import FunctionType, MethodType

import aiokafka.client
from aiokafka.client import AIOKafkaClient
from aiokafka.protocol.metadata import MetadataRequest

# aiokafka's own code with another request: it has no option for it.
_metadata_update = FunctionType(
    AIOKafkaClient._metadata_update.__code__,
    {
        **vars(aiokafka.client),
        "MetadataRequest": partial(MetadataRequest, allow_auto_topic_creation=False),
    },
)


def create_no_topics(client: AIOKafkaClient) -> None:
    """Let no metadata request of `client` create a topic, also where the broker auto-creates."""
    client._metadata_update = MethodType(_metadata_update, client)
