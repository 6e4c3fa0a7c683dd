"""The check of the repository's prose finds each unwanted word where it stands, and nothing else."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from tests.support import words
from tests.support.requirements import program
from tests.support.words import Unwanted, main, text_files, unwanted

#: One word and one phrase of the list; the tests of the check have none in their own text.
WORD, PHRASE = next(iter(words.WORDS)), next(phrase for phrase in words.WORDS if " " in phrase)


@pytest.mark.parametrize("word", words.WORDS)
def test_every_word_of_the_list_is_found(word: str) -> None:
    """Each word is found in any case and as a part of a name, with its line."""
    name = word.replace(" ", "_")
    text = f'"""Text.\n\n{word.capitalize()}, {word.upper()}."""\n'
    assert list(unwanted("a.py", text)) == [Unwanted("a.py", 3, word)] * 2
    if name == word:
        assert list(unwanted("a.py", f"\nself._{word}_by = 1\n")) == [Unwanted("a.py", 2, word)]


@pytest.mark.parametrize("gap", ["\n", "\n    # ", "\n#: ", ' "\n    "', "  "])
def test_a_phrase_over_the_end_of_a_line(gap: str) -> None:
    """A phrase is found where a line of prose, a comment or a string ends in it; its first line counts."""
    first, _, rest = PHRASE.partition(" ")
    assert list(unwanted("a.py", f"\n# {first}{gap}{rest}\n")) == [Unwanted("a.py", 2, PHRASE)]


@pytest.mark.parametrize("text", ["besides", "retold", "tolds", "Toldo", "whatever there is", "said, shown"])
def test_a_longer_word_is_another_one(text: str) -> None:
    """Only whole words count."""
    assert not list(unwanted("a.py", text))


def test_a_line_says_what_to_write() -> None:
    """Each word of the list has a replacement and a reason, and the line has both."""
    for word, (instead, reason) in words.WORDS.items():
        assert instead and reason
        assert str(Unwanted("docs/a.rst", 7, word)) == f'docs/a.rst:7: "{word}": write {instead} ({reason})'


def test_exit_code_and_output(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Without an unwanted word it prints nothing and exits with 0, else with 1 and a line for each."""
    page = tmp_path / "a.rst"
    page.write_text("Plain English.\n")
    assert (main([], tmp_path), capsys.readouterr().out) == (0, "")
    page.write_text(f"{WORD}\nEnglish\n{WORD}\n")
    assert main([], tmp_path) == 1
    lines = capsys.readouterr().out.splitlines()
    assert [line.partition(": ")[0] for line in lines[:2]] == ["a.rst:1", "a.rst:3"]
    assert lines[2].startswith("2 unwanted words")
    assert main(["--count"], tmp_path) == 1
    assert capsys.readouterr().out.splitlines()[0].split() == ["2", "a.rst"]


def test_paths(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """PATH limits the check to files and directories; one without a file to check is an error."""
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs" / "a.rst").write_text("English\n")
    (tmp_path / "b.rst").write_text(f"{WORD}\n")
    assert main([str(tmp_path / "docs")], tmp_path) == 0
    assert main([str(tmp_path / "b.rst")], tmp_path) == 1
    with pytest.raises(SystemExit) as end:
        main([str(tmp_path / "nowhere")], tmp_path)
    assert end.value.code == 2
    assert "nowhere" in capsys.readouterr().err


def make_files(directory: Path) -> None:
    for name in (
        "a.py", "a.svg", "docs/a.rst", ".ci/run", "tests/console/golden/a.rst", "tests/support/words.py",
        ".tox/py/lib/b.py", "venv/pyvenv.cfg", "venv/lib/b.py",
    ):  # fmt: skip
        path = directory / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("\n")


def test_which_files_without_git(tmp_path: Path) -> None:
    """Without git all text files are checked, but for golden files, the list, environments and caches."""
    make_files(tmp_path)
    assert text_files(tmp_path) == [".ci/run", "a.py", "docs/a.rst"]


def test_which_files_of_git(tmp_path: Path) -> None:
    """The text files that git tracks are checked, without golden files and the list."""
    program("git")
    make_files(tmp_path)
    subprocess.run(["git", "init", "-q", tmp_path], check=True)
    subprocess.run(["git", "-C", tmp_path, "add", "a.py", "docs", "tests"], check=True)
    assert text_files(tmp_path) == ["a.py", "docs/a.rst"]


def test_what_is_exempt_exists() -> None:
    """Each exempt file exists and has unwanted words: otherwise its exemption is removed."""
    for name in words.EXEMPT:
        assert list(unwanted(name, (words.ROOT / name).read_text()))
