"""HTTP: the server of an application, and the management port of every service.

- `server`: runs an application in a process that keeps its own signal handlers.
- `admission`: requests refused by their size, body or host; origins of browsers.
- `connections`: client connections, with timeouts and a limit on their number.
- `application`: request ids, error bodies and metrics for every response.
- `errors`: the error body, and the texts of the server's own refusals.
- `limits`: concurrent requests and streams, per caller and per process.
- `negotiation`: Accept, Accept-Encoding and If-None-Match headers.
- `compression`: incremental gzip and zstd.
- `management`: `/livez`, `/readyz` and `/metrics`; `probe`: requests to the peers, for `/readyz`.
- `auth/`: from a request's token to its caller and their namespaces.
"""
