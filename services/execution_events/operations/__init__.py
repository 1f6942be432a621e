"""Operations on a whole installation, above Kafka and the store; the commands call them.

- `migration`: update the schema and the roles.
- `accept`: accept a log that replaced the stored one.
"""
