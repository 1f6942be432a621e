"""Kafka's requests are found in a stream, and a process's connections by their ports."""

import asyncio
import os

import pytest

from tests.faults import proxy
from tests.faults.requests import ApiKeys, local_ports


def request(api_key: int, size: int = 30) -> bytes:
    return size.to_bytes(4) + api_key.to_bytes(2) + b"\0" * (size - 2)


@pytest.mark.parametrize("piece", [1, 5, 7, 1000])
def test_api_keys_are_found_in_pieces_of_any_size(piece: int) -> None:
    keys = ApiKeys()
    stream = b"".join(request(key, size) for key, size in ((3, 30), (11, 8), (12, 2), (1, 300)))
    found = [keys.feed(stream[at : at + piece]) for at in range(0, len(stream), piece)]
    assert set().union(*found) == {3, 11, 12, 1}


@pytest.mark.skipif(not os.path.exists("/proc/net/tcp"), reason="Linux")  # noqa: PTH110
async def test_the_ports_of_a_process_are_those_of_its_connections() -> None:
    async def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()
        writer.close()

    server = await asyncio.start_server(accept, proxy.HOST, 0)
    _, writer = await asyncio.open_connection(*server.sockets[0].getsockname())
    port = writer.get_extra_info("sockname")[1]
    try:
        assert port in local_ports(os.getpid())
        assert port not in local_ports(os.getppid())
        assert local_ports(2**22 + 1) == set()
    finally:
        writer.close()
        server.close()
