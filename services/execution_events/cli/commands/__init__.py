"""The commands of `execution-events`, one module each.

A module has `add_commands(commands)`, which adds its parser to the command line; the parser's
default `run(arguments, settings)` returns the exit code.
"""
