"""The reader: one execution's events by HTTP.

- `service`: the process: settings in, exit out.
- `app`: the API: routes, errors, request ids.
- `lists`: one list: decode a request, ask the store, write bytes.
- `cache`: answers that may be given again.
- `access`: who is asking, by the tokens of `token_file` or the JWTs of `issuer`.
- `limits`: how much is done at a time.
- `query`: a request's parameters as one value; markers.
- `negotiation`: a request's headers: format, encoding, entity tags.
- `rendering`: events as the API writes them.
- `compression`: bodies, piece by piece.
- `streaming`: a list that is sent while it is read.
- `watch`: a list, and then each change, as server-sent events.
- `feeds`: the changes of what is watched, for all watchers of the process.
- `selecting`: whether a changed event is one of those that were asked for.
- `resumption`: where a watch stands.
"""
