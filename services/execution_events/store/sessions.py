"""The settings of sessions: timeouts, and what the planner may do.

A service sets them on each of its sessions. `migrate` also stores them for the roles, by ALTER ROLE
… IN DATABASE … SET: no client may change a session behind a pooler in transaction mode.
"""

_COMMON = {
    # The server ends the sessions of unreachable hosts, which releases their locks.
    "tcp_keepalives_idle": "5",
    "tcp_keepalives_interval": "2",
    "tcp_keepalives_count": "3",
    "tcp_user_timeout": "10s",
    "statement_timeout": "55s",
    "lock_timeout": "20s",
    "idle_in_transaction_session_timeout": "60s",
    "timezone": "UTC",
}

COMMAND = _COMMON
"""Settings of a command's sessions."""

CONSUMER = _COMMON | {
    # A batch that waits for another session delays all of its partitions.
    "lock_timeout": "5s",
    # A batch that exceeds it is halved.
    "statement_timeout": "20s",
    # Rows are found by their keys, even if the statistics of a growing table are out of date.
    "plan_cache_mode": "force_generic_plan",
    "enable_seqscan": "off",
    "enable_hashjoin": "off",
    "enable_mergejoin": "off",
    "jit": "off",
}

REPORTS = _COMMON | {
    "lock_timeout": "2s",
    "statement_timeout": "5s",
    # A report is replaced a second later: nothing waits for the disk.
    "synchronous_commit": "off",
}
"""Settings of the sessions in which consumers report their partitions."""

READER = _COMMON | {
    "default_transaction_read_only": "on",
    "statement_timeout": "10s",
    # Lists are read in the order of their index: the statistics of small executions would make the
    # planner sort a large one for each of its pages, and those of a small table scan a large one.
    "enable_sort": "off",
    "enable_seqscan": "off",
    "plan_cache_mode": "force_generic_plan",
    "max_parallel_workers_per_gather": "0",
    # Compiling a statement takes longer than running it.
    "jit": "off",
}

OPS = {
    "statement_timeout": "30s",
    "idle_in_transaction_session_timeout": "30s",
    # A question is answered by an index. Where few actions run, the planner would rather sort a
    # parallel scan of all of them; compiling would take longer than most questions.
    "max_parallel_workers_per_gather": "0",
    "jit": "off",
}
"""Settings of dashboards and operators, who may change them: nothing depends on them."""

OPS_CONNECTIONS = 20
"""Maximum connections of the role for dashboards and operators."""

ROLE_SETTINGS = {
    "execution_events_writer": CONSUMER,
    "execution_events_reader": READER,
    "execution_events_ops": OPS,
}
