"""Publishing, for workers.

- `publisher`: `Publisher`, what a worker publishes with.
- `element`: elements and actions, as scopes of a worker's code.
- `event`: an event as a worker states it; `naming` names and dates it.
- `lifecycle`: the reasons and messages of an action's life cycle.
- `record`: an encoded event on its way; `tracing`: its trace.
- `delivery/`: from `publish` to the acknowledgement of Kafka, with a spool or without.
- `spool/`: records on this machine's disk.
"""

from execution_events.publisher.element import Action, Element
from execution_events.publisher.event import Event
from execution_events.publisher.naming import Names
from execution_events.publisher.publisher import Publisher

__all__ = ["Action", "Element", "Event", "Names", "Publisher"]
