"""The command `execution-events`: parse, call, print.

- `main`: the command line, errors and exit codes.
- `commands`: one module for each command.
- `streams`: standard input, output and error, also closed or full.
- `report`: the output of a command that changes something.
- `arguments`, `extras`, `progress`, `signals`, `waiting`: shared by commands.
- `dead_letter_format`, `spool_format`: the output of `dead-letters` and `spool`.
"""
