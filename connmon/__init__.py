"""connmon: a "top" for database connections."""

from __future__ import annotations

from typing import TYPE_CHECKING

from connmon.version import __version__

if TYPE_CHECKING:
    from sqlalchemy.engine import Engine
    from sqlalchemy.ext.asyncio import AsyncEngine

__all__ = ["__version__", "attach"]


def attach(engine: Engine | AsyncEngine, **options: object) -> None:
    """Watch the connection pool of an existing engine.

    What happens in the pool from now on is reported to a connmon node: connections, checkouts and checkins,
    waits, and who holds a connection. A connection that is in use already is counted at its next event. The
    engine's URL is not needed and stays as it is. An engine that connmon watches already keeps its first
    options.

    .. code-block:: python

        import connmon
        from sqlalchemy import create_engine

        engine = create_engine("mysql+pymysql://db/shop")
        connmon.attach(engine, service="default", program="shop", held=10)

    :param engine: an ``Engine`` or ``AsyncEngine`` of SQLAlchemy.
    :param options: the options of the URL without their prefix ``connmon_``, as values or text. One that is
        None counts as not given.

        - ``service``: the service of the config file to report to; default ``"default"``.
        - ``addr``: report to this ``host:port`` instead, without a config file.
        - ``config``: path of the config file; default ``$CONNMON_CONFIG``, else ``/etc/connmon.cfg``.
        - ``program``: the program name to show; default ``$CONNMON_PROGRAM``, else derived from how the
          process was started.
        - ``trace``: which checkouts have their call site noted: ``"auto"`` (each, up to 100 a second in the
          process, and a fair sample of more; the default), ``"all"``, or ``"off"``.
        - ``held``: seconds after which a held connection counts as held long, above 0; default 30.
        - ``profile``: how often a second, on average, the plugin looks where the holders of connections are,
          for the profile of holds; 0 (off) to 100; default 10.
        - ``project``: the packages that are the application, with commas between; default: derived from where
          code is installed.
        - ``secret_file``: path of the file with the service's secret; default: the config file's.

    :returns: None. The pool is watched for as long as it lives, and so are those that it is replaced by, as
        ``engine.dispose()`` does.
    :raises sqlalchemy.exc.ArgumentError: ``engine`` is not an engine, or an option is unknown or wrong. Any
        other failure is one warning of the logger ``connmon.plugin.engine``; the engine then works unwatched.
    """
    # Imported on use: the commands import this package too, and load neither the plugin nor SQLAlchemy.
    from connmon.plugin.engine import attach as attach_engine

    attach_engine(engine, **options)
