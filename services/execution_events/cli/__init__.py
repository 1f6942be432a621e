"""The command `execution-events`: parse, call, print.

- `main`: the command line, errors and exit codes.
- `commands`: one module for each command.
- `arguments`, `extras`, `signals`, `progress`, `dead_letter_format`: shared by commands.
"""
