"""The reader: executions, and the events of each, over HTTP.

- `service`: the process, from its settings to its exit.
- `app`: the routes and the contract; `reference`: the contract for people.
- `endpoint`: one request for events, from its headers to its response.
- `execution_endpoint`: one request for executions; `execution_query`, `execution_rendering`: their
  parameters as one value, and their bodies.
- `query`: the parameters of a request for events as one value.
- `parameters`: the query string, its refusal, and page markers.
- `responses`: what the lists share: conditions, compression, the link to the next page.
- `cache`: responses that are reused while nothing has changed.
- `rendering`: bodies and their entity tags.
- `streaming`: long lists, sent while they are read.
- `watch`: a list and then each change, as server-sent events; `resumption`: their ids.
"""
