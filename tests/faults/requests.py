"""Kafka's requests as a proxy sees them pass, and the process that sends them."""

from contextlib import suppress
from pathlib import Path

GROUP_APIS = frozenset({11, 12, 13, 14})
"""JoinGroup, Heartbeat, LeaveGroup and SyncGroup: only a coordinator is asked these."""
_HEADER = 6
"""Bytes of a request's size and of its api key."""


class ApiKeys:
    """Finds the api key of each request in what a client sends, however it is cut up."""

    def __init__(self) -> None:
        self._header = b""
        self._skip = 0

    def feed(self, data: bytes) -> set[int]:
        """The api keys of the requests whose beginning `data` completes."""
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
    """The local ports of the TCP connections of a process, on Linux; none where it is gone."""
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
