"""The publisher for workers.

- `publisher`: `Publisher`, the interface for workers.
- `element`: elements and actions, as scopes of a worker's code.
- `event`: an event, its bounds and its occurrence; `naming`: its name.
- `lifecycle`: the reasons and messages of an action's life cycle.
- `record`: an encoded event that is not acknowledged yet; `tracing`: its trace.
- `delivery/`: from `publish` to the acknowledgement by Kafka, with or without a spool.
- `spool/`: records on the local disk.
"""

from execution_events.publisher.element import Action, Element
from execution_events.publisher.event import Event
from execution_events.publisher.publisher import Publisher

__all__ = ["Action", "Element", "Event", "Publisher"]
