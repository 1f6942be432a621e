"""A parser of Kafka's requests for the proxy, and a look-up of a process's connections."""

from contextlib import suppress
from pathlib import Path

GROUP_APIS = frozenset({11, 12, 13, 14})
"""JoinGroup, Heartbeat, LeaveGroup and SyncGroup, sent only to a coordinator."""
_HEADER = 6
"""Bytes of a request's size and API key."""


class ApiKeys:
    """A finder of the API key of each request in a client's stream, received in any pieces."""

    def __init__(self) -> None:
        self._header = b""
        self._skip = 0

    def feed(self, data: bytes) -> set[int]:
        """Return the API keys of the requests whose header `data` completes."""
        found = set()
        while data:
            passed = min(self._skip, len(data))
            self._skip -= passed
            data = data[passed:]
            missing = _HEADER - len(self._header)
            self._header += data[:missing]
            data = data[missing:]
            if len(self._header) == _HEADER:
                found.add(int.from_bytes(self._header[4:]))
                self._skip = max(0, int.from_bytes(self._header[:4]) - 2)
                self._header = b""
        return found


def local_ports(pid: int) -> set[int]:
    """Return the local TCP ports of a process on Linux, none if it has ended."""
    inodes = set()
    with suppress(OSError):
        for descriptor in Path(f"/proc/{pid}/fd").iterdir():
            with suppress(OSError):
                inodes.add(str(descriptor.readlink()).removeprefix("socket:[").removesuffix("]"))
    ports = set()
    for line in Path("/proc/net/tcp").read_text().splitlines()[1:]:
        fields = line.split()
        if fields[9] in inodes:
            ports.add(int(fields[1].rpartition(":")[2], 16))
    return ports
