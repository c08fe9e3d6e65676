"""Completion in the shell: what bash, zsh and fish get when Tab is pressed."""

import os
import subprocess
import sys

import pytest


def complete(line, shell="bash"):
    """The words that complete the last one of a command line."""
    words = line.split(" ")
    given = {
        "_TETRAVIT_COMPLETE": f"complete_{shell}",
        "COMP_WORDS": line,
        "COMP_CWORD": str(len(words) - 1),
        "_TYPER_COMPLETE_ARGS": line,
        "_TYPER_COMPLETE_FISH_ACTION": "get-args",
    }
    code = "import sys; sys.argv[0] = 'tetravit'; from tetravit.__main__ import main; main()"
    done = subprocess.run(
        [sys.executable, "-c", code], env={**os.environ, **given}, capture_output=True, text=True, check=False
    )
    return done.stdout.split()


@pytest.mark.parametrize(
    ("line", "found"),
    [
        ("tetravit tra", "train"),
        ("tetravit train shapes-s", "shapes-seg"),
        ("tetravit list proto", "protocols"),
        ("tetravit show xcit_nano_12_p1", "xcit_nano_12_p16"),
        ("tetravit train digits --resu", "--resume"),
    ],
)
def test_bash_completes_verbs_names_and_options(line, found):
    assert complete(line) == [found]


@pytest.mark.parametrize("shell", ["zsh", "fish"])
def test_other_shells_complete_too(shell):
    assert any("train" in word for word in complete("tetravit tra", shell))
