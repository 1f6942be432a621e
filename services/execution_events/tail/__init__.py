"""`tail`: an execution followed in a terminal, by the HTTP API alone.

- `event`: an event as the API shows it.
- `watched_list`: the fold of a watch's messages into changes of a list.
- `states`: the states of actions and elements, from their events.
- `pace`: at most one change of an event in a second.
- `ending`: settled and quiet, by the time under watch.
- `lines`, `texts`: the layout of a line; text from outside, made harmless.
- `watch`: HTTP: requests, reconnection, refusals.
- `follow`: the run, from the first request to the exit code.
"""
