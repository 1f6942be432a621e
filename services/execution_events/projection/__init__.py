"""The pure projection of a partition's records onto the rows of one transaction.

- `fold`: folding of an event's occurrences.
- `body`: the JSON of an event in the API.
- `states`: states of actions, elements and executions, from their events.
- `failure`: the fingerprint of a failure.
- `batch`: projection of a batch onto folded events, dead letters and watermarks.
- `fingerprint`: identity of a record in its log.
"""
