"""The reader: the events of one execution over HTTP.

- `service`: the process, from its settings to its exit.
- `app`: the routes and the contract; `reference`: the contract for people.
- `endpoint`: one request, from its headers to its response.
- `query`: the parameters of a request as one value; page markers.
- `cache`: responses that are reused while nothing has changed.
- `rendering`: bodies and their entity tags.
- `streaming`: long lists, sent while they are read.
- `watch`: a list and then each change, as server-sent events; `resumption`: their ids.
"""
