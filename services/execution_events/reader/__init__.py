"""The reader: one execution's events by HTTP.

- `service`: the process: settings in, exit out.
- `app`: the API: decode a request, ask the store, write bytes.
- `rendering`: an event as the API writes it.
"""
