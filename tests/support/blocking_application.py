"""A program that holds a row's lock, or waits for it: the subject of tests of `connmon whois`.

    python blocking_application.py hold|wait URL

It prints "ready" when it has the row or is about to wait for it, and ends with its standard input.
"""

from __future__ import annotations

import os
import sys
import threading

import sqlalchemy
from sqlalchemy import text
from sqlalchemy.engine import Connection


def take_the_row(connection: Connection) -> None:
    connection.execute(text("UPDATE blocked SET n = n + 1 WHERE id = 1"))


def hold(engine: sqlalchemy.Engine) -> None:
    with engine.connect() as connection:
        take_the_row(connection)
        print("ready", flush=True)
        threading.Event().wait()


def wait(engine: sqlalchemy.Engine) -> None:
    with engine.connect() as connection:
        print("ready", flush=True)
        take_the_row(connection)


def main() -> None:
    role, url = sys.argv[1:]
    engine = sqlalchemy.create_engine(url)
    target = {"hold": hold, "wait": wait}[role]
    threading.Thread(target=target, args=(engine,), name=f"{role}s-the-row", daemon=True).start()
    sys.stdin.read()
    os._exit(0)  # its thread is in the driver


if __name__ == "__main__":
    main()
