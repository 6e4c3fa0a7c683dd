"""connmon: a "top" for database connections."""

__version__ = "0.1.0"
