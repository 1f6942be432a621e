"""Publishing, for workers.

- `Publisher`: sends occurrences to the topic, acknowledged by Kafka.
"""

from execution_events.publisher.publisher import Acknowledged, Publisher

__all__ = ["Acknowledged", "Publisher"]
