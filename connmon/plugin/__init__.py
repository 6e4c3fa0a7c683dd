"""What lives inside other people's processes: it counts what their connection pools do.

Rules kept in this package:

- The application never waits for it, never sees an exception from it (but for options that
  are wrong, when the engine is made), and never runs out of memory by it.
- No password, query string option or SQL parameter leaves the process.
- Nothing slow is imported, and nothing happens on import.
"""
