"""The schema: numbered migrations, roles and their privileges.

- `migrate`: apply what is missing; require what a service needs.
- `provision`: an empty database and its owner.
- `migrations/*.sql`, `privileges.sql`: the SQL itself.
"""
