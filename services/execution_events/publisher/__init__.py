"""Publishing, for workers.

- `Publisher`: what a worker publishes with; `Element` and `Action`: the scopes of its work.
- `Event`: what a worker says. `Names`: names and dates it. `reasons`: the life cycle's catalogue.
- `direct`, `spooling`: delivery without a spool and through one; `sender`: to Kafka, in order.
- `producer`, `background`: aiokafka's producer, and tasks, that end and begin as we need it.
- `spool`, `spool_file`, `spool_directory`: the records of a spool, its file, its directory;
  `spool_turn`: what passes between a spool and its sender.
"""

from execution_events.publisher.element import Action, Element
from execution_events.publisher.event import Event
from execution_events.publisher.naming import Names
from execution_events.publisher.publisher import Publisher

__all__ = ["Action", "Element", "Event", "Names", "Publisher"]
