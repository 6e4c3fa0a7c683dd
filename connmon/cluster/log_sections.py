"""The sections [loggers], [handlers] and [formatters] of the config file: checked, then applied.

`logging.config.fileConfig` applies them; it reports a mistake by a bare KeyError or worse. So mistakes are
looked for first: each is a ConfigError of one line that names the file, the section, the option and
what is expected. After a mistake nothing is set up.
"""

from __future__ import annotations

import configparser
import logging
import logging.config
import logging.handlers
from collections.abc import Callable
from typing import Any, Final

from connmon.errors import ConfigError, one_line

_KINDS: Final = ("loggers", "handlers", "formatters")


class _Mistake(Exception):
    """A mistake; the text begins with its place."""


def set_up(path: str) -> None:
    """Set up logging by the sections of this file. Raises ConfigError."""
    parser = configparser.ConfigParser()
    try:
        with open(path, encoding="utf-8-sig") as file:
            parser.read_file(file)
        check(parser)
        try:
            logging.config.fileConfig(parser, disable_existing_loggers=False)
        except Exception as error:
            raise _Mistake(_handler_at_fault(parser) or f"[handlers]: {_words(error)}") from None
    except _Mistake as mistake:
        raise ConfigError(one_line(f"{path}: {mistake}")) from None
    except (OSError, ValueError, configparser.Error) as error:  # the file has just been read
        raise ConfigError(one_line(f"{path}: cannot be read: {_words(error)}")) from None


def problem(parser: configparser.ConfigParser) -> str | None:
    """Return the first mistake in the sections, None if there is none."""
    try:
        check(parser)
    except _Mistake as mistake:
        return str(mistake)
    return None


def check(parser: configparser.ConfigParser) -> None:
    """Raise _Mistake if `fileConfig` would fail before it makes the handlers."""
    for kind in _KINDS:
        if not parser.has_section(kind):
            raise _Mistake(f"[{kind}]: missing; expected all of [loggers], [handlers] and [formatters]")
    names = {kind: _names(parser, kind, "keys") for kind in _KINDS}
    if "root" not in names["loggers"]:
        raise _Mistake("[loggers] keys: root is missing; expected root and the names of other loggers")
    for kind, check_one in zip(_KINDS, (_check_logger, _check_handler, _check_formatter), strict=True):
        for name in names[kind]:
            section = f"{kind[:-1]}_{name}"
            if not parser.has_section(section):
                raise _Mistake(f"[{kind}] keys: {name!r} has no section; expected [{section}]")
            check_one(parser, section, names)


_Names = dict[str, list[str]]


def _check_logger(parser: configparser.ConfigParser, section: str, names: _Names) -> None:
    for handler in _names(parser, section, "handlers"):
        _expect_one_of(section, "handlers", handler, names["handlers"], "[handlers] keys")
    _check_level(parser, section)
    if section != "logger_root":
        _required(parser, section, "qualname", "the logger's name in the program, as connmon.cluster")
        try:
            parser.getint(section, "propagate", fallback=1)
        except (ValueError, configparser.Error):
            raise _Mistake(f"[{section}] propagate: expected 1 or 0") from None


def _check_handler(parser: configparser.ConfigParser, section: str, names: _Names) -> None:
    kind = _handler_class(parser, section)
    _arguments(parser, section)
    formatter = _get(parser, section, "formatter")
    if formatter:
        _expect_one_of(section, "formatter", formatter, names["formatters"], "[formatters] keys")
    _check_level(parser, section)
    target = _get(parser, section, "target")
    if target and isinstance(kind, type) and issubclass(kind, logging.handlers.MemoryHandler):
        _expect_one_of(section, "target", target, names["handlers"], "[handlers] keys")


def _check_formatter(parser: configparser.ConfigParser, section: str, names: _Names) -> None:
    form = parser.get(section, "format", raw=True, fallback=None)
    date_form = parser.get(section, "datefmt", raw=True, fallback=None)
    style: Any = parser.get(section, "style", raw=True, fallback="%")
    if style not in ("%", "{", "$"):
        raise _Mistake(f"[{section}] style: {style!r} is not one of %, {{, $")
    name = _get(parser, section, "class")
    formatter: Any = logging.Formatter
    if name:
        formatter = _evaluated(section, "class", lambda: logging.config._resolve(name))  # type: ignore[attr-defined]
        if not callable(formatter):
            raise _Mistake(f"[{section}] class: {name!r} is not a class")
    try:
        formatter(form, date_form, style)
    except Exception as error:
        raise _Mistake(f"[{section}] format: {_words(error)}") from None


def _handler_class(parser: configparser.ConfigParser, section: str) -> Callable[..., Any]:
    name = _required(
        parser, section, "class", "a class of logging, as StreamHandler or handlers.SysLogHandler"
    )

    def resolve() -> Any:
        try:
            return eval(name, vars(logging))  # as fileConfig does
        except (AttributeError, NameError):
            return logging.config._resolve(name)  # type: ignore[attr-defined]

    handler_class: Callable[..., Any] = _evaluated(section, "class", resolve)
    if not callable(handler_class):
        raise _Mistake(f"[{section}] class: {name!r} is not a class")
    return handler_class


def _arguments(parser: configparser.ConfigParser, section: str) -> tuple[tuple[Any, ...], dict[str, Any]]:
    texts = _get(parser, section, "args", "()"), _get(parser, section, "kwargs", "{}")
    args = _evaluated(section, "args", lambda: eval(texts[0], vars(logging)))
    if not isinstance(args, tuple | list):
        raise _Mistake(f"[{section}] args: {texts[0]} is not a tuple; expected one, as ('FILE',) or ()")
    kwargs = _evaluated(section, "kwargs", lambda: eval(texts[1], vars(logging)))
    if not isinstance(kwargs, dict) or not all(isinstance(key, str) for key in kwargs):
        raise _Mistake(f"[{section}] kwargs: {texts[1]} is not a dict; expected one, as {{'delay': True}}")
    return tuple(args), kwargs


def _handler_at_fault(parser: configparser.ConfigParser) -> str | None:
    """Make the handlers one by one; return the mistake of the first that fails, as in fileConfig."""
    for name in _names(parser, "handlers", "keys"):
        section = f"handler_{name}"
        args, kwargs = _arguments(parser, section)
        try:
            handler = _handler_class(parser, section)(*args, **kwargs)
            handler.setLevel(logging.NOTSET)
            handler.close()
        except Exception as error:
            return f"[{section}] args: {_words(error)}"
    return None


def _check_level(parser: configparser.ConfigParser, section: str) -> None:
    if not parser.has_option(section, "level"):
        return
    level = _get(parser, section, "level")
    if not isinstance(logging.getLevelName(level), int):
        raise _Mistake(f"[{section}] level: {level!r} is not one of DEBUG, INFO, WARNING, ERROR, CRITICAL")


def _names(parser: configparser.ConfigParser, section: str, option: str) -> list[str]:
    text = _required(parser, section, option, "names separated by commas, or nothing", empty=True)
    names = [name.strip() for name in text.split(",")] if text else []
    for name in names:
        if names.count(name) > 1:
            raise _Mistake(f"[{section}] {option}: {name!r} is there twice")
    return names


def _expect_one_of(section: str, option: str, name: str, possible: list[str], where: str) -> None:
    if name not in possible:
        known = ", ".join(possible) or "nothing"
        raise _Mistake(f"[{section}] {option}: {name!r} is not in {where}, which has {known}")


def _required(
    parser: configparser.ConfigParser, section: str, option: str, expected: str, empty: bool = False
) -> str:
    if not parser.has_option(section, option):
        raise _Mistake(f"[{section}] {option}: missing; expected {expected}")
    text = _get(parser, section, option)
    if not text and not empty:
        raise _Mistake(f"[{section}] {option}: empty; expected {expected}")
    return text


def _get(parser: configparser.ConfigParser, section: str, option: str, default: str = "") -> str:
    try:
        return parser.get(section, option, fallback=default)
    except configparser.Error:
        raise _Mistake(f"[{section}] {option}: a % that stands alone; write %%") from None


def _evaluated(section: str, option: str, evaluate: Callable[[], Any]) -> Any:
    try:
        return evaluate()
    except Exception as error:
        raise _Mistake(f"[{section}] {option}: {_words(error)}") from None


def _words(error: Exception) -> str:
    """Return the error's text, with its class unless it is a system error."""
    if isinstance(error, OSError) and error.strerror:
        return f"{error.filename}: {error.strerror}" if error.filename else error.strerror
    return " ".join(f"{type(error).__name__}: {error}".split())
