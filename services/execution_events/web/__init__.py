"""HTTP for the reader and the console.

- `server`: serve an application inside a process that has its own signals.
- `connections`: connections of clients, with limits on time, size and number.
- `application`: request ids, errors and metrics of every answer.
- `errors`: the body of an error, and what the server refuses by itself.
- `limits`: concurrent requests and streams of a caller and of the process.
- `compression`: bodies, piece by piece; `preferences`: of a request's Accept headers.
- `management`: `/livez`, `/readyz` and `/metrics`; `probe`: requests to the peers, for `/readyz`.
- `auth/`: a request's token to the caller and its namespaces.
"""
