"""The fold, pure: records of a partition's log become what one transaction stores.

- `fold`: occurrences of one event into one.
- `body`: an event as the API lists it.
- `batch`: records of a batch into folded events, dead letters and watermarks.
- `fingerprint`: what identifies a record of a log.
"""
