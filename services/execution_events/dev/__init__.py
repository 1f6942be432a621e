"""`dev`: everything on this machine.

- `stack`: what is started, in which order, and stopped.
- `supervisor`: one service as a child process, started again when it ends.
- `demo`: executions to look at.
"""
