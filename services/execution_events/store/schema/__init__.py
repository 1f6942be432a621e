"""The schema: migrations, roles and privileges.

- `migrate`: application of migrations, and the check of the schema's version.
- `provision`: an empty database and its owner.
- `migrations/*.sql`, `privileges.sql`: their SQL.
"""
