"""A dashboard's query: elements that failed, with the number of retries and the last message.

python dashboard.py OPS_URL
"""

import asyncio
import sys

import asyncpg

QUERY = """
SELECT e.execution_id, e.elem_id, e.reason_code, e.message_en, e.last_timestamp,
       coalesce(sum(r.count), 0) AS retries
FROM ops.events_v1 e
LEFT JOIN ops.events_v1 r
       ON r.execution_id = e.execution_id AND r.namespace = e.namespace
      AND r.elem_id = e.elem_id AND r.reason_code = 'ActionRetry'
WHERE e.reason_code IN ('ActionFailed', 'ActionTimeout')
GROUP BY 1, 2, 3, 4, 5
ORDER BY e.last_timestamp DESC
LIMIT 20
"""


async def main(url: str) -> None:
    """Print a line for each failed element."""
    connection = await asyncpg.connect(url)
    try:
        for row in await connection.fetch(QUERY):
            print(*row[:4], f"retries={row['retries']}", sep="  ")
    finally:
        await connection.close()


asyncio.run(main(sys.argv[1]))
