"""connmon: a "top" for database connections."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sqlalchemy.engine import Engine
    from sqlalchemy.ext.asyncio import AsyncEngine

__all__ = ["__version__", "attach"]

__version__ = "1.0.0.dev0"


def attach(engine: Engine | AsyncEngine, **options: object) -> None:
    """Watch the connection pool of an engine that exists already.

    An engine whose URL has ``plugin=connmon`` needs no call. An engine that connmon watches already stays as
    it is, with the options that it was attached with first.

    The call connects neither to the database nor to a node. When something in connmon fails, it logs one
    warning and the engine works without connmon.

    :param engine: an engine for threads or for asyncio.
    :param options: the options of the URL without their prefix ``connmon_``, as a string, number or path:
        ``service``, ``addr``, ``config``, ``program``, ``trace``, ``held`` (in seconds), ``project`` and
        ``secret_file``. None means: not given.
    :raises sqlalchemy.exc.ArgumentError: an option is unknown or its value is wrong, or ``engine`` is not an
        engine.
    """
    # Imported on use and by name: every part of connmon imports the version above, and only applications have
    # the plugin and SQLAlchemy loaded.
    import_module("connmon.plugin.engine").attach(engine, **options)
