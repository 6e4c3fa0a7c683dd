"""connmon: a "top" for database connections."""

from __future__ import annotations

from typing import TYPE_CHECKING

from connmon.version import __version__

if TYPE_CHECKING:
    from sqlalchemy.engine import Engine
    from sqlalchemy.ext.asyncio import AsyncEngine

__all__ = ["__version__", "attach"]


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
    # Imported on use: the commands import this package too, and load neither the plugin nor SQLAlchemy.
    from connmon.plugin.engine import attach as attach_engine

    attach_engine(engine, **options)
