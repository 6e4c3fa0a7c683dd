"""The database server's side of it: its own session list, beside what processes report. For the terminal.

- `passwords`: from the files of the servers' own clients (pure).
- `sessions`: asks the server; the only import of SQLAlchemy outside of what applications load. `locks`: what
  it asks of locks, and how the answers are read (pure).
- `blocking`: which session blocks which, and whose they are (pure).
- `reconcile`: its list against the replica (pure). `compare`: has both looked at, twice where needed.
- `whois`: who holds one session (pure). `formats`: how a reconciliation is printed (pure).
"""
