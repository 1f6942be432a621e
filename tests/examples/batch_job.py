"""A short batch job: one action, whose command decides the exit code.

python batch_job.py EXECUTION_ID COMMAND [ARGUMENT ...]
"""

import subprocess
import sys

from execution_events.sync import Publisher


def main(execution_id: str, *command: str) -> int:
    """Run `command` as an action, and return its exit code."""
    with Publisher.from_settings() as publisher:
        element = publisher.element(
            execution_id=execution_id,
            namespace="my-tenant",
            object_name="my-dag",
            elem_type="Batch",
            elem_id="job-a",
        )
        try:
            with element.action("run"):
                subprocess.run(command, check=True)
        except subprocess.CalledProcessError as error:
            return error.returncode
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
