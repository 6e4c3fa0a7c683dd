"""The database server's own view of its sessions, compared with what processes report. For the terminal.

This runs in the process of a command, never in an application or in a node.

- `sessions` connects to the server; it is the only module here that imports SQLAlchemy. `mysql` and
  `postgresql` have the queries and read their answers (pure). `server_view` is the result: sessions,
  limits, addresses.
- `login_files` reads ~/.my.cnf and ~/.pgpass (pure). `connection_limit` explains a server that is full
  (pure).
- `locks` has the waits for locks, `lock_chains` follows them from session to session (pure).
- `naming` decides which connections are at the server that is asked (pure).
- `reconcile` and `whois` compare (pure), `reconcile_formats` and `whois_formats` print the result (pure).
  `documents` has the types of both results: they are the JSON contract.
- `collect` reads a node and a server and calls `reconcile` or `whois`.
- `settings` has the time limits and the limits of rows.
"""
