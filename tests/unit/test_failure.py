"""Failures with equal causes group by their fingerprint; different causes do not."""

from hashlib import sha256

import pytest

from execution_events.projection.failure import failure_fingerprint

COMMON = {
    "execution_id": "e19d3faf-9f04-9685-e5c0-fbe8d40b96cd",
    "object_name": "etl-20261126",
    "elem_type": "KubeDAG.job",
    "elem_id": "clean-returns",
}
OTHER = {
    "execution_id": "0b6b4ff4-6f57-4b0e-8f0e-2f1f7c3c9a11",
    "object_name": "etl-20261127",
    "elem_type": "KubeDAG.job",
    "elem_id": "aggregate-daily",
}


def of(message: str, code: str = "ActionFailed", **fields: str) -> str:
    return failure_fingerprint(code, message, **{**COMMON, **fields})


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (
            "Element(clean-returns) execute Action: create failed: exit code 137 (OOMKilled)",
            "Element(aggregate-daily) execute Action: create failed: exit code 137 (OOMKilled)",
        ),
        ("元素clean-returns执行失败: 磁盘已满", "元素aggregate-daily执行失败: 磁盘已满"),
        (
            "pod etl-20261126-clean-returns-0 of e19d3faf-9f04-9685-e5c0-fbe8d40b96cd evicted",
            "pod etl-20261127-aggregate-daily-0 of 0b6b4ff4-6f57-4b0e-8f0e-2f1f7c3c9a11 evicted",
        ),
        (
            "volume pvc-7d444840-9dc0-11d1-b245-5ffdce74fad2 is gone",
            "volume pvc-7D444840-9DC0-11D1-B245-5FFDCE74FAD3 is gone",
        ),
        ("segmentation fault at 0x7ffee4a0", "segmentation fault at 0X00DEADBEEF"),
        ("process 12345 took 600000 ms", "process 9876 took 601523 ms"),
        (
            "no answer from db-1:5432 at 20261126T101500",
            "no answer from db-1:15432 at 20261127T0001",
        ),
        (
            "Traceback: File \"/app/etl.py\", line 1042, in load; KeyError: 'price'",
            "Traceback: File \"/app/etl.py\", line 2077, in load; KeyError: 'price'",
        ),
        (
            "java.lang.OutOfMemoryError: heap at com.acme.Job@0x1f2e (Job.java:1204)",
            "java.lang.OutOfMemoryError: heap at com.acme.Job@0xa11c (Job.java:1377)",
        ),
        ("拉取镜像超时, 请求号20261126000123", "拉取镜像超时, 请求号20261126999999"),
    ],
)
def test_failures_with_equal_causes_group(one: str, other: str) -> None:
    assert of(one) == of(other, **OTHER)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("exit code 137", "exit code 1"),
        ("took 999 ms", "took 1000 ms"),
        ("connection refused", "connection reset"),
        ("Connection refused", "connection refused"),
        ("磁盘已满", "内存不足"),
        ("/data/a.csv: no such file", "/data/b.csv: no such file"),
        ("KeyError: 'price'", "KeyError: 'amount'"),
        ("clean-returns2 failed", "clean-returns failed"),
        ("my_clean-returns failed", "my_aggregate-daily failed"),
        ("running at 0xzz", "running at 0x1f"),
        ("１２３４ failed", "５６７８ failed"),
        ("a failure ", "a failure"),
    ],
)
def test_failures_with_different_causes_do_not_group(one: str, other: str) -> None:
    assert of(one) != of(other)


def test_reason_and_element_type_are_part_of_the_fingerprint() -> None:
    assert len({of("x"), of("x", "ActionTimeout"), of("x", elem_type="KubeDAG.init")}) == 3


@pytest.mark.parametrize(
    ("message", "text"),
    [
        ("", ""),
        ("Element(clean-returns) of etl-20261126", "Element(<>) of <>"),
        ("clean-returns", "<>"),
        ("clean-returns clean-returns,clean-returns", "<> <>,<>"),
        (
            "clean-returns_1 xclean-returns clean-returns9",
            "clean-returns_1 xclean-returns clean-returns9",
        ),
        ("-clean-returns-", "-<>-"),
        ("元clean-returns素", "元<>素"),
        ("pid 123, 1234, 12345", "pid 123, <>, <>"),
        ("x1234y", "x<>y"),
        ("0xFf 0X1 0x 0xg", "<> <> 0x 0xg"),
        ("0x1234567890", "<>"),
        ("a0x1f", "a<>"),
        ("7d444840-9dc0-11d1-b245-5ffdce74fad2", "<>"),
        # Each pattern is replaced in the whole text before the next.
        ("99997d444840-9dc0-11d1-b245-5ffdce74fad2", "<><>"),
        ("0x7d444840-9dc0-11d1-b245-5ffdce74fad2", "0x<>"),
        ("e19d3faf-9f04-9685-e5c0-fbe8d40b96cd", "<>"),
        ("e19d3faf-9f04-9685-e5c0-fbe8d40b96cde", "<>e"),
    ],
)
def test_the_fingerprint_is_the_documented_hash(message: str, text: str) -> None:
    hashed = sha256(f"KubeDAG.job\0ActionFailed\0{text}".encode()).hexdigest()
    assert of(message) == hashed[:16]


@pytest.mark.parametrize(
    ("fields", "message", "text"),
    [
        # The longest first, whatever it identifies.
        ({"elem_id": "a-b", "object_name": "b"}, "a-b b", "<> <>"),
        ({"elem_id": "b", "object_name": "a-b"}, "a-b b", "<> <>"),
        ({"elem_id": "b", "object_name": "x", "execution_id": "a:b:c"}, "a:b:c", "<>"),
        # Equally long: execution, object, element.
        ({"elem_id": "b:c", "object_name": "a:b"}, "a:b:c", "<>:c"),
        ({"elem_id": "same", "object_name": "same"}, "same", "<>"),
        ({"elem_id": "job", "object_name": "x"}, "job-2 job", "<>-2 <>"),
    ],
)
def test_identifiers_are_replaced_as_whole_words(
    fields: dict[str, str], message: str, text: str
) -> None:
    hashed = sha256(f"KubeDAG.job\0ActionFailed\0{text}".encode()).hexdigest()
    assert of(message, **fields) == hashed[:16]
