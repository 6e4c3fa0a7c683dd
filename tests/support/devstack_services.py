"""Open the databases of OpenStack services as the services do: the program that test_devstack runs.

    python -m tests.support.devstack_services [FILE...] SECTION [FILE...] SECTION ...

Each SECTION (in brackets) of the configuration in the files before it becomes an engine of oslo.db,
which connects. Then the program waits for the end of standard input.
"""

from __future__ import annotations

import copy
import sys

from oslo_config import cfg
from oslo_db import options
from oslo_db.sqlalchemy import enginefacade
from sqlalchemy import text


def configured(files: list[str], section: str) -> cfg.ConfigOpts:
    """Return a service's configuration, environment included; nova has these options in several sections."""
    conf = cfg.ConfigOpts()
    conf.register_opts(copy.deepcopy(options.database_opts), section)
    conf([], project="connmon-test", default_config_files=files)
    return conf


def main(arguments: list[str]) -> None:
    files: list[str] = []
    engines = []
    for argument in arguments:
        if not argument.startswith("["):
            files.append(argument)
            continue
        conf = configured(files, argument[1:-1])
        files = []
        manager = enginefacade.transaction_context()
        # As nova, cinder and placement do; the other services leave it to oslo.db.
        manager.configure(**dict(conf[argument[1:-1]]))
        engine = manager.writer.get_engine()
        with engine.connect() as connection:
            connection.execute(text("SELECT 1"))
        engines.append(engine)
    print("connected", flush=True)
    sys.stdin.read()


if __name__ == "__main__":
    main(sys.argv[1:])
