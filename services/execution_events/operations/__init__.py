"""Work on a whole installation, above Kafka and the store: what commands call.

- `migration`: bring the schema and the roles up to date.
- `accept`: continue with a log that replaced the stored one.
"""
