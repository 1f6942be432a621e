"""The schema: migrations, roles and privileges.

- `migrate`: application of migrations, and the check of the schema's version.
- `lock`: the lock of a migration, and sessions that block it.
- `roles`: the roles, their settings, privileges and passwords.
- `scram`: verifiers of passwords.
- `provision`: an empty database and its owner.
- `migrations/*.sql`, `privileges.sql`: their SQL.
"""
