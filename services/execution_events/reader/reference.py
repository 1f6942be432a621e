"""The reference of the API for people: the contract in Swagger UI, without any other host."""

import gzip
from collections.abc import Mapping
from importlib.resources import files

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Route

_DIRECTORY = files(__package__) / "swagger_ui"
_MEDIA_TYPES: Mapping[str, str] = {
    "reference.js": "text/javascript",
    "swagger-ui-bundle.js": "text/javascript",
    "swagger-ui.css": "text/css",
}
_COMPRESSED = frozenset(("swagger-ui-bundle.js", "swagger-ui.css"))
_HEADERS = {
    "Cache-Control": "public, max-age=3600",
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; "
    "img-src 'self' data:; connect-src 'self'; base-uri 'none'; form-action 'none'; "
    "frame-ancestors 'none'",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}


def reference_routes() -> list[BaseRoute]:
    """Return the routes of the page and its files."""
    return [
        Route("/docs", _page, methods=["GET"]),
        Route("/docs/{file}", _file, methods=["GET"]),
    ]


async def _page(_: Request) -> Response:
    return Response((_DIRECTORY / "index.html").read_bytes(), 200, _HEADERS, "text/html")


async def _file(request: Request) -> Response:
    name = request.path_params["file"]
    if name not in _MEDIA_TYPES:
        raise HTTPException(404)
    headers = dict(_HEADERS)
    if name in _COMPRESSED:
        content = (_DIRECTORY / f"{name}.gz").read_bytes()
        headers["Vary"] = "Accept-Encoding"
        if "gzip" in request.headers.get("Accept-Encoding", ""):
            headers["Content-Encoding"] = "gzip"
        else:
            content = gzip.decompress(content)
    else:
        content = (_DIRECTORY / name).read_bytes()
    return Response(content, 200, headers, _MEDIA_TYPES[name])
