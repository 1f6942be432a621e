"""A test of a worker without Kafka, with a publisher that records events."""

import pytest

from execution_events.sync import Publisher
from execution_events.testing import SyncRecordingPublisher


def create_node(publisher: Publisher, execution_id: str, *, free: int) -> None:
    """Run one element: a worker's code that is to be tested."""
    element = publisher.element(
        execution_id=execution_id,
        namespace="my-tenant",
        object_name="my-dag",
        elem_type="KubeDAG.init",
        elem_id="node",
    )
    with element.action("create"):
        if not free:
            raise RuntimeError("no free node")


def test_a_created_node_is_reported() -> None:
    with SyncRecordingPublisher() as publisher:
        create_node(publisher, "my-execution", free=1)
    assert [event.reason for event in publisher.events] == [
        "启动##ActionStart",
        "执行成功##SuccessfulFinish",
    ]


def test_a_missing_node_is_reported() -> None:
    with SyncRecordingPublisher() as publisher, pytest.raises(RuntimeError):
        create_node(publisher, "my-execution", free=0)
    failed = publisher.events[-1]
    assert (failed.reason, failed.type) == ("执行失败##ActionFailed", "Warning")
    assert failed.message.endswith("create failed: RuntimeError: no free node")
