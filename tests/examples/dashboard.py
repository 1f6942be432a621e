"""A dashboard's query: the newest failures, with the number of retries and the message.

python dashboard.py OPS_URL
"""

import asyncio
import sys

import asyncpg

QUERY = """
SELECT execution_id, elem_id, action_name, failure, retries
FROM ops.actions_v1
WHERE state IN ('failed', 'timed_out')
ORDER BY finished DESC
LIMIT 20
"""


async def main(url: str) -> None:
    """Print a line for each failure."""
    connection = await asyncpg.connect(url)
    try:
        for row in await connection.fetch(QUERY):
            print(*row[:4], f"retries={row['retries']}", sep="  ")
    finally:
        await connection.close()


asyncio.run(main(sys.argv[1]))
