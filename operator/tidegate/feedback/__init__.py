"""The feedback service: rewards that users give to responses, counted by the version that served them.

`limits` and `items` read what was sent, `totals` counts, `journal` keeps it on disk, `service` speaks HTTP.
"""
