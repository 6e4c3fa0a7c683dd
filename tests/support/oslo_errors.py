"""Print what an application on oslo.db sees of its engine and errors, as lines of JSON, for test_oslo.

    python -m tests.support.oslo_errors OPTIONS

OPTIONS is JSON: the URL, `connection_parameters` or null, and the URL of a server that does not exist.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from typing import Any

from oslo_db import exception
from oslo_db.sqlalchemy import engines
from sqlalchemy import Engine, text

#: The prefix of connmon's attribute on a pool timeout that it has counted.
MARK = "connmon"
#: Statements by their error.
WRONG = {
    "duplicate key": "INSERT INTO oslo_errors (id, name) VALUES (1, 'other')",
    "duplicate name": "INSERT INTO oslo_errors (id, name) VALUES (3, 'one')",
    "no parent": "INSERT INTO oslo_errors_child (parent) VALUES (77)",
    "has children": "DELETE FROM oslo_errors WHERE id = 2",
    "null": "INSERT INTO oslo_errors (id, name) VALUES (4, NULL)",
    "too long": "INSERT INTO oslo_errors (id, name) VALUES (4, repeat('x', 40))",
    "no table": "SELECT * FROM oslo_errors_missing",
    "no column": "SELECT missing FROM oslo_errors",
    "no database": "USE oslo_errors_missing",
    "syntax": "SELEKT 1",
    "deadlock": (
        "SIGNAL SQLSTATE '40001' SET MYSQL_ERRNO = 1213, MESSAGE_TEXT ="
        " 'Deadlock found when trying to get lock; try restarting transaction'"
    ),
}


def main(options: dict[str, Any]) -> None:
    def create(url: str, **more: Any) -> Engine:
        engine: Engine = engines.create_engine(
            url, connection_parameters=options["connection_parameters"], max_pool_size=1, max_overflow=0,
            pool_timeout=0.1, max_retries=1, retry_interval=0, **more,
        )  # fmt: skip
        return engine

    engine = create(options["url"], mysql_sql_mode="TRADITIONAL")
    say("engine", [
        engine.url.render_as_string(), engine.url.get_backend_name(), engine.url.get_driver_name(),
        engine.name, engine.driver, engine.dialect.__class__.__name__,
        engine.pool.__class__.__name__, engine.pool.size(),  # type: ignore[attr-defined]
    ])  # fmt: skip
    with engine.begin() as connection:
        for variable in ("sql_mode", "character_set_client", "collation_connection"):
            say(variable, connection.execute(text(f"SELECT @@{variable}")).scalar())
        connection.execute(text("DROP TABLE IF EXISTS oslo_errors_child, oslo_errors"))
        connection.execute(text(
            "CREATE TABLE oslo_errors (id INT PRIMARY KEY, name VARCHAR(9) NOT NULL UNIQUE)"
        ))  # fmt: skip
        connection.execute(text(
            "CREATE TABLE oslo_errors_child (parent INT,"
            " CONSTRAINT parent_key FOREIGN KEY (parent) REFERENCES oslo_errors (id))"
        ))  # fmt: skip
        connection.execute(text("INSERT INTO oslo_errors VALUES (1, 'one'), (2, 'two')"))
        connection.execute(text("INSERT INTO oslo_errors_child VALUES (2)"))
    for name, statement in WRONG.items():
        attempt(name, lambda statement=statement: run(engine, statement))  # type: ignore[misc]

    def lost() -> None:
        with engine.connect() as connection:
            for statement in ("KILL connection_id()", "SELECT 1", "SELECT 1"):
                try:
                    connection.execute(text(statement))
                except exception.DBConnectionError:
                    say("invalidated", connection.invalidated)
                    raise
                except exception.DBError as error:  # "Query execution was interrupted": the next one fails
                    say("interrupted", type(error).__name__)
                    connection.rollback()

    attempt("lost", lost)
    attempt("after it was lost", lambda: run(engine, "SELECT 1"))

    def two() -> None:
        with engine.connect(), engine.connect():
            pass

    attempt("pool timeout", two)
    attempt("nobody there", lambda: create(options["nobody"]).dispose())
    run(engine, "DROP TABLE oslo_errors_child, oslo_errors")
    engine.dispose()


def run(engine: Engine, statement: str) -> None:
    with engine.begin() as connection:
        connection.execute(text(statement))


def attempt(name: str, do: Callable[[], None]) -> None:
    try:
        do()
        say(name, "well")
    except Exception as error:
        inner = getattr(error, "inner_exception", None)
        details = {
            key: value
            for key, value in sorted(vars(error).items())
            if isinstance(value, (str, list, int)) and not key.startswith(("_", MARK))
        }
        say(name, [type(error).__name__, type(inner).__name__, str(error), repr(details)])


def say(name: str, value: Any) -> None:
    print(json.dumps([name, value]), flush=True)


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
