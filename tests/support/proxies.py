"""nginx and HAProxy in front of a reader; `make proxies` installs them (Debian)."""

import os
import re
import shutil
import socket
import tempfile
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from pathlib import Path

import httpx

from execution_events.embedded import ChildProcess
from tests.support.consumers import until
from tests.support.readers import Reader

_README = Path(__file__).parents[2] / "infra" / "README.md"
_PATH = f"{os.environ.get('PATH', '')}:/usr/sbin"
NGINX = shutil.which("nginx", path=_PATH)
HAPROXY = shutil.which("haproxy", path=_PATH)


def documented(proxy: str) -> str:
    """Return the documented settings of a proxy."""
    [settings] = re.findall(rf"```{proxy}\n(.*?)\n```", _README.read_text(), re.DOTALL)
    return str(settings)


def default_of_nginx() -> str:
    """Return nginx's default towards an upstream server: HTTP/1.0, buffered."""
    proxied = "proxy_pass http://127.0.0.1:8080;"
    return f"server {{ listen 8000; location / {{ {proxied} proxy_set_header Host $http_host; }} }}"


@asynccontextmanager
async def nginx(reader: Reader, settings: str) -> AsyncIterator[httpx.AsyncClient]:
    """A client of a reader through nginx."""
    assert NGINX

    def command(directory: Path, settings: str) -> list[str]:
        temporary = "".join(
            f"{kind}_temp_path {directory};"
            for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
        )
        file = directory / "nginx.conf"
        file.write_text(
            f"daemon off; master_process off; pid {directory}/pid; error_log stderr;"
            f" events {{}} http {{ access_log off; {temporary}\n{settings}\n}}"
        )
        return [NGINX, "-e", "stderr", "-p", str(directory), "-c", str(file)]

    async with _running(reader, settings, command) as client:
        yield client


@asynccontextmanager
async def haproxy(reader: Reader, settings: str) -> AsyncIterator[httpx.AsyncClient]:
    """A client of a reader through HAProxy."""
    assert HAPROXY

    def command(directory: Path, settings: str) -> list[str]:
        file = directory / "haproxy.cfg"
        file.write_text(settings + "\n")
        return [HAPROXY, "-db", "-f", str(file)]

    async with _running(reader, settings, command) as client:
        yield client


@asynccontextmanager
async def _running(
    reader: Reader, settings: str, command: Callable[[Path, str], list[str]]
) -> AsyncIterator[httpx.AsyncClient]:
    with (
        tempfile.TemporaryDirectory() as directory,
        socket.create_server(("127.0.0.1", 0)) as taken,
    ):
        port = taken.getsockname()[1]
        # The ports of the documentation, and those of this test.
        ports: Mapping[str, int | None] = {
            "8000": port,
            "8080": reader.api.base_url.port,
            "8081": reader.management.base_url.port,
        }
        settings = re.sub("|".join(ports), lambda found: str(ports[found[0]]), settings)
        line = command(Path(directory), settings)
        taken.close()
        async with (
            ChildProcess(line),
            httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", timeout=30) as client,
        ):

            async def serves() -> bool:
                try:
                    return (await client.get("/")).status_code == 200
                except httpx.TransportError:
                    return False

            await until(serves, "the proxy serves")
            yield client
