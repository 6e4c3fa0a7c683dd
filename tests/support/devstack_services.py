"""The databases of OpenStack services, opened as these open them: what test_devstack runs.

    python -m tests.support.devstack_services [FILE...] SECTION [FILE...] SECTION ...

Each SECTION (in brackets) of the configuration in the files before it becomes an engine of oslo.db,
which connects; then it waits for the end of standard input.
"""

from __future__ import annotations

import copy
import sys

from oslo_config import cfg
from oslo_db import options
from oslo_db.sqlalchemy import enginefacade
from sqlalchemy import text


def configured(files: list[str], section: str) -> cfg.ConfigOpts:
    """Return what a service reads, environment included; nova has the same options in several sections."""
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
        # As nova, cinder and placement do it; the others leave it to oslo.db.
        manager.configure(**dict(conf[argument[1:-1]]))
        engine = manager.writer.get_engine()
        with engine.connect() as connection:
            connection.execute(text("SELECT 1"))
        engines.append(engine)
    print("connected", flush=True)
    sys.stdin.read()


if __name__ == "__main__":
    main(sys.argv[1:])
