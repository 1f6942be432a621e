"""Reasons of a worker's own: one for progress, and one that ends an action.

python reasons.py EXECUTION_ID
"""

import sys

from execution_events import WARNING
from execution_events.sync import Element, Publisher

IMAGE_PULLED = "镜像已拉取##ImagePulled"
QUOTA_EXCEEDED = "配额不足##ActionFailed"


def build(element: Element, quota: int) -> None:
    """Publish the progress of an action, and its end."""
    element.event("启动##ActionStart", action_name="build")
    element.event(IMAGE_PULLED, "镜像已拉取. ## Image pulled.", action_name="build")
    if quota < 1:
        # The state of an action follows from the code, the half behind `##`.
        element.event(
            QUOTA_EXCEEDED, "配额不足. ## Quota exceeded.", type=WARNING, action_name="build"
        )


with Publisher.from_settings() as publisher:
    build(
        publisher.element(
            execution_id=sys.argv[1],
            namespace="my-tenant",
            object_name="my-dag",
            elem_type="KubeDAG.init",
            elem_id="job-a",
        ),
        quota=0,
    )
