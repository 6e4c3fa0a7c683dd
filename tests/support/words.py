"""Check that the repository is written in plain English: python -m tests.support.words [--count] [PATH...]

Prints one line for each unwanted word in code, comments, docstrings, messages and pages, and exits with 1
if there is one. A word is found in any case and between underscores, a phrase also where a line ends in it.
PATH limits the check to files and directories; --count prints how many words each file has.

It needs nothing that is not in the standard library, so that a hook of git can run it.
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Final, NamedTuple

ROOT: Final = Path(__file__).resolve().parents[2]

_ARCHAIC: Final = "nobody says it any more"

#: The unwanted words, each with what to write instead and why.
WORDS: Final = {
    "told": (
        '"reported", "shown", "given" or "sent"',
        "it leaves open who learns it and how; a variable is named for what it holds",
    ),
    "anew": ('"again", or the verb: "restarts", "reopens", "rereads"', _ARCHAIC),
    "beside": ('"next to", "as well as", "compared with" or "apart from"', "it means all four"),
    "whoever": ('"anyone who", or the noun: "a client that"', "a noun says who it is"),
    "what there is": ('the noun: "the pools", "all options"', "it names nothing"),
    "of these that": ('the noun: "the connections that"', "it names nothing"),
    "is that of": ('the noun: "is the node\'s", or "belongs to"', "the reader has to look up what it is"),
    "he who": ('"anyone who", or the noun: "a client that"', _ARCHAIC),
    "for ever": ('"forever", or "without a limit"', _ARCHAIC),
    "all the while": ('"meanwhile", or since and until when', _ARCHAIC),
    "lest": ('"so that ... not"', _ARCHAIC),
    "hence": ('"so" or "therefore"', _ARCHAIC),
    "upon": ('"on" or "when"', _ARCHAIC),
    "whomsoever": ('"anyone"', _ARCHAIC),
    "whatsoever": ('"any", or nothing', _ARCHAIC),
    "thereof": ('"of it" or "its"', _ARCHAIC),
    "therein": ('"in it"', _ARCHAIC),
    "thereby": ('"so", or "by" and the noun', _ARCHAIC),
    "thereupon": ('"then"', _ARCHAIC),
    "hereby": ("nothing", _ARCHAIC),
    "wherefore": ('"so" or "why"', _ARCHAIC),
    "whereof": ('"of which"', _ARCHAIC),
    "wherein": ('"in which"', _ARCHAIC),
    "whereby": ('"by which"', _ARCHAIC),
    "whereupon": ('"then"', _ARCHAIC),
    "whence": ('"from where"', _ARCHAIC),
    "thence": ('"from there"', _ARCHAIC),
    "hitherto": ('"until now"', _ARCHAIC),
    "forthwith": ('"at once"', _ARCHAIC),
    "nought": ('"nothing" or "0"', _ARCHAIC),
    "amongst": ('"among"', _ARCHAIC),
    "whilst": ('"while"', _ARCHAIC),
    "unto": ('"to"', _ARCHAIC),
}

#: Files that may have these words, and why.
EXEMPT: Final = {"tests/support/words.py": "has the list itself"}

_SUFFIXES: Final = frozenset((".py", ".rst", ".toml", ".yml", ".yaml", ".sh", ".ini", ".cfg", ".service"))
#: Text files without a suffix.
_NAMES: Final = frozenset((".ci/run", "devstack/settings"))
#: Files that tests compare with output, byte for byte: their words are the program's.
_GOLDEN: Final = "tests/console/golden/"

#: Anything between the words of a phrase: also the end of a line, in a comment or between string literals.
_GAP: Final = r"""(?:[\s"']|#:?)+"""
#: A word begins and ends where no letter or digit is; `not_told` has the word `told`.
_PATTERN: Final = re.compile(
    r"(?<![^\W_])(?:"
    + "|".join(_GAP.join(map(re.escape, phrase.split())) for phrase in WORDS)
    + r")(?![^\W_])",
    re.IGNORECASE,
)


class Unwanted(NamedTuple):
    """An unwanted word in a file, at a line that counts from 1."""

    path: str
    line: int
    word: str

    def __str__(self) -> str:
        instead, reason = WORDS[self.word]
        return f'{self.path}:{self.line}: "{self.word}": write {instead} ({reason})'


def unwanted(path: str, text: str) -> Iterator[Unwanted]:
    """Yield the unwanted words of a text, in its order."""
    for match in _PATTERN.finditer(text):
        word = " ".join(re.split(_GAP, match[0].lower()))
        yield Unwanted(path, text.count("\n", 0, match.start()) + 1, word)


def text_files(root: Path) -> list[str]:
    """Return the files to check, relative to the root: those of git; without git, all of the tree."""
    git = ["git", "-C", str(root), "ls-files", "-z"]
    try:
        listed = subprocess.run(git, stdin=subprocess.DEVNULL, capture_output=True, check=True, text=True)
        names: Iterable[str] = listed.stdout.split("\0")
    except (OSError, subprocess.CalledProcessError):  # an unpacked sdist
        names = _unpacked(root)
    return sorted(
        name
        for name in names
        if (Path(name).suffix in _SUFFIXES or name in _NAMES)
        and name not in EXEMPT
        and not name.startswith(_GOLDEN)
        and root.joinpath(name).is_file()  # not so for a file that is deleted and not yet committed
    )


def _unpacked(root: Path) -> Iterator[str]:
    """Yield the files of a tree without git, but not those of virtual environments, tox and caches."""
    for directory, folders, names in os.walk(root):
        place = Path(directory)
        folders[:] = [
            name
            for name in folders
            if (name == ".ci" or not name.startswith(".")) and not (place / name / "pyvenv.cfg").exists()
        ]
        yield from ((place / name).relative_to(root).as_posix() for name in names)


def main(arguments: list[str] | None = None, root: Path = ROOT) -> int:
    """Check the tree at `root`. Return the exit code: 1 for an unwanted word, 2 for wrong arguments."""
    parser = argparse.ArgumentParser(prog="python -m tests.support.words", description="Check the prose.")
    parser.add_argument("--count", action="store_true", help="print the number of words for each file")
    parser.add_argument("paths", nargs="*", metavar="PATH", help="check only these files and directories")
    options = parser.parse_args(arguments)
    files = text_files(root)
    if options.paths:
        within = [Path(path).resolve() for path in options.paths]
        files = [name for name in files if any(root.joinpath(name).is_relative_to(path) for path in within)]
        if not files:
            parser.error(f"no file to check in {' '.join(options.paths)}")
    total = 0
    for name in files:
        text = root.joinpath(name).read_text(encoding="utf-8")
        words = list(unwanted(name, text))
        total += len(words)
        if words and options.count:
            print(f"{len(words):5} {name}")
        elif words:
            print(*words, sep="\n")
    if total:
        print(f"{total} unwanted words: tests/support/words.py has the list")
    return 1 if total else 0


if __name__ == "__main__":
    sys.exit(main())
