"""The reader: one execution's events over HTTP.

- `service`: the process: settings in, exit out.
- `app`: the routes.
- `endpoint`: one request: decode it, ask the store, write bytes.
- `query`: a request's parameters as one value; markers.
- `negotiation`: a request's headers: format, encoding, entity tags.
- `cache`: answers that may be given again.
- `rendering`: events as the API writes them.
- `streaming`: a list that is sent while it is read.
- `watch`: a list, and then each change, as server-sent events; `resumption`: where a watch stands.
"""
