"""Mistakes in [loggers], [handlers] and [formatters] are one line with the place, never a raw KeyError."""

from __future__ import annotations

import configparser
import logging
import logging.config
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from connmon.cluster import daemon
from connmon.cluster.log_sections import problem
from tests.cluster.test_daemon import Connmond, free_port, run, started, write

__all__ = ["started"]

RIGHT = {
    "loggers": {"keys": "root, wire"},
    "handlers": {"keys": "out"},
    "formatters": {"keys": "plain"},
    "logger_root": {"level": "INFO", "handlers": "out"},
    "logger_wire": {
        "level": "DEBUG",
        "handlers": "",
        "qualname": "connmon.test_logsections",
        "propagate": "1",
    },
    "handler_out": {"class": "NullHandler", "args": "()", "level": "NOTSET", "formatter": "plain"},
    "formatter_plain": {"format": "%(levelname)s %(message)s"},
}


def parser(sections: dict[str, dict[str, str]]) -> configparser.ConfigParser:
    made = configparser.ConfigParser()
    made.read_string(text(sections))
    return made


def text(sections: dict[str, dict[str, str]]) -> str:
    return "".join(
        f"[{name}]\n" + "".join(f"{option}: {value}\n" for option, value in options.items())
        for name, options in sections.items()
    )


def changed(section: str, option: str, value: str | None) -> dict[str, dict[str, str]]:
    """Return valid sections with one option changed; None: without the option; no option: without the
    section."""
    sections = {name: dict(options) for name, options in RIGHT.items()}
    if not option:
        del sections[section]
    elif value is None:
        del sections[section][option]
    else:
        sections[section][option] = value
    return sections


def test_right_sections() -> None:
    """Sections that fileConfig accepts have no mistake."""
    assert problem(parser(RIGHT)) is None


@pytest.mark.slow
@pytest.mark.parametrize(
    ("section", "option", "value", "expected"),
    [
        ("loggers", "", None, "[loggers]: missing; expected all of [loggers], [handlers] and [formatters]"),
        ("handlers", "", None, "[handlers]: missing"),
        ("formatters", "", None, "[formatters]: missing"),
        ("loggers", "keys", None, "[loggers] keys: missing"),
        ("loggers", "keys", "wire", "[loggers] keys: root is missing"),
        ("loggers", "keys", "root,root", "[loggers] keys: 'root' is there twice"),
        ("loggers", "keys", "root,none", "[loggers] keys: 'none' has no section; expected [logger_none]"),
        ("handlers", "keys", "out,", "[handlers] keys: '' has no section"),
        (
            "handlers",
            "keys",
            "",
            "[logger_root] handlers: 'out' is not in [handlers] keys",
        ),
        ("formatters", "keys", "", "[handler_out] formatter: 'plain' is not in [formatters] keys"),
        ("logger_root", "handlers", None, "[logger_root] handlers: missing"),
        (
            "logger_root",
            "handlers",
            "outt",
            "[logger_root] handlers: 'outt' is not in [handlers] keys",
        ),
        ("logger_root", "level", "LOUD", "[logger_root] level: 'LOUD' is not one of DEBUG, INFO"),
        ("logger_root", "level", "10", "[logger_root] level: '10' is not one of"),
        ("logger_root", "", None, "[loggers] keys: 'root' has no section"),
        ("logger_wire", "qualname", None, "[logger_wire] qualname: missing"),
        ("logger_wire", "propagate", "perhaps", "[logger_wire] propagate: expected 1 or 0"),
        ("handler_out", "class", None, "[handler_out] class: missing"),
        ("handler_out", "class", "NoHandler", "[handler_out] class: "),
        ("handler_out", "class", "os.path", "[handler_out] class: 'os.path' is not a class"),
        ("handler_out", "class", "FileHandler(", "[handler_out] class: SyntaxError"),
        ("handler_out", "args", "('a'", "[handler_out] args: SyntaxError"),
        ("handler_out", "args", "('a')", "[handler_out] args: ('a') is not a tuple"),
        ("handler_out", "args", "(1, 2, 3)", "[handler_out] args: TypeError"),
        ("handler_out", "args", "('50%',)", "[handler_out] args: a % that stands alone; write %%"),
        ("handler_out", "kwargs", "1", "[handler_out] kwargs: 1 is not a dict"),
        ("handler_out", "level", "loud", "[handler_out] level: 'loud' is not one of"),
        ("handler_out", "formatter", "fancy", "[handler_out] formatter: 'fancy' is not in [formatters] keys"),
        ("formatter_plain", "format", "%(message)y", "[formatter_plain] format: "),
        ("formatter_plain", "style", "x", "[formatter_plain] style: 'x' is not one of"),
        ("formatter_plain", "class", "none.Such", "[formatter_plain] class: ModuleNotFoundError"),
        ("formatter_plain", "", None, "[formatters] keys: 'plain' has no section"),
    ],
)
def test_a_mistake_is_one_line(
    section: str,
    option: str,
    value: str | None,
    expected: str,
    started: list[Connmond],
    tmp_path: Path,
) -> None:
    """The line names file, section and option; exit code 2, at start and with --check-config."""
    path = write(tmp_path / "c.cfg", free_port(), text(changed(section, option, value)))
    lines = []
    for more in (["--check-config"], []):
        node = run(started, "--config", str(path), *more)
        assert node.end() == 2
        lines.append(node.stderr)
    assert lines[0] == lines[1]
    assert lines[0].startswith(f"connmond: {path}: {expected}"), lines[0]
    assert lines[0].count("\n") == 1


@pytest.fixture
def untouched_logging() -> Iterator[None]:
    """Restore the logging that fileConfig changes."""
    root = logging.getLogger()
    before = root.handlers[:], root.level
    yield
    root.handlers[:], level = before
    root.setLevel(level)


_VALUES = st.sampled_from(
    ["", "root", "out", "plain", "root,out", "wire", "()", "{}", "1", "%", "%%", "INFO", "x y"]
)


@pytest.mark.usefixtures("untouched_logging")
@given(st.data())
def test_what_passes_can_be_set_up(data: st.DataObject) -> None:
    """After any few changes either a mistake is named, or fileConfig accepts the sections."""
    sections = {name: dict(options) for name, options in RIGHT.items()}
    for _ in range(data.draw(st.integers(1, 3))):
        section = data.draw(st.sampled_from(sorted(sections)))
        option = data.draw(st.sampled_from(sorted({*RIGHT[section], "args", "class", "level", "target"})))
        match data.draw(st.sampled_from(["drop", "drop section", "set"])):
            case "drop":
                sections[section].pop(option, None)
            case "drop section" if len(sections) > 1:
                del sections[section]
            case _:
                sections[section][option] = data.draw(_VALUES)
    made = parser(sections)
    mistake = problem(made)
    if mistake is None:
        logging.config.fileConfig(made, disable_existing_loggers=False)
    else:
        assert mistake.startswith("[") and "\n" not in mistake and "KeyError" not in mistake


@pytest.mark.parametrize(("section", "option"), [(name, option) for name in RIGHT for option in RIGHT[name]])
def test_a_percent_sign_that_stands_alone(section: str, option: str) -> None:
    """A lone percent sign is a named mistake, or is used as it is."""
    sections = {name: dict(options) for name, options in RIGHT.items()}
    sections[section][option] = "%"
    mistake = problem(parser(sections))
    assert mistake is None or mistake.startswith(f"[{section}] {option}: ")


def test_a_byte_order_mark_is_no_mistake(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The file may begin with a byte order mark."""
    path = write(tmp_path / "c.cfg", free_port(), text(RIGHT))
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
    assert daemon.main(["--check-config", "-c", str(path), "--node", "other"]) == 2
    assert "'other'" in capsys.readouterr().err
    made = configparser.ConfigParser()
    made.read_string(path.read_text(encoding="utf-8-sig"))
    assert problem(made) is None
