"""The command `execution-events`: parse, call, print.

- `main`: the command line, errors and exit codes.
- One module for each command.
"""
