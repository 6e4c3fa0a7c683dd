"""The part of connmon inside other people's processes: it counts and reports what their connection pools do.

The application never waits for it, never sees an exception from it (but for wrong options, when the engine is
made), and never runs out of memory because of it. No password, query string option or SQL parameter leaves
the process. Only SQLAlchemy, psutil, msgspec and light modules of the standard library are imported here, and
nothing happens on import.

From the application to the node: `engine` and `dialect` (from a URL to a pool), `pool` and `queuepool` (what
the pool does), `pool_account` and `process_account` (what is written down), `holder` and `call_site` (who,
and where), `ledger` (reports), `uplink` and `uplink_socket` (to the node), `reporter` (the thread).
"""
