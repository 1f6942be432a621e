"""The command `execution-events`: parse, call, print.

- `main`: the command line, errors and exit codes.
- `commands`: one module for each command.
- `arguments`, `extras`, `progress`, `signals`: shared by commands.
- `dead_letter_format`, `spool_format`: the output of `dead-letters` and `spool`.
"""
