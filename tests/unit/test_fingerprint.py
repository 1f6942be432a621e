"""Fingerprints of records: compared with those that earlier versions have stored."""

from execution_events.projection.fingerprint import Fingerprint, fingerprint
from tests.support.records import LogRecord

RECORD = LogRecord(0, 7, 1_700_000_000_123, b"key", "值".encode(), [("é", b"1"), ("b", None)])


def test_stored_fingerprints_stay_valid() -> None:
    expected = bytes.fromhex("fdf304aeca145a4d20d5fb1ddf70de20")
    assert fingerprint(RECORD) == Fingerprint(7, 1_700_000_000_123, expected)


def test_a_byte_in_another_part_changes_the_fingerprint() -> None:
    records = [
        LogRecord(0, 0, 0, key, value, headers)
        for key, value, headers in (
            (None, b"ab", []),
            (b"", b"ab", []),
            (b"a", b"b", []),
            (b"ab", b"", []),
            (b"ab", None, []),
            (b"a", None, [("b", b"")]),
            (b"a", None, [("b", None)]),
            (b"a", None, [("", b"b")]),
        )
    ]
    assert len({fingerprint(record) for record in records}) == len(records)
