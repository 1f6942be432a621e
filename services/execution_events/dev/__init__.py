"""The stack of `execution-events dev`: everything on this machine.

- `stack`: start and stop order of the servers and services.
- `supervisor`: one service as a child process, restarted when it ends.
- `demo`: sample executions.
"""
