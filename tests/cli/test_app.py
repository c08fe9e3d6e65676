"""The command as a whole: help, mistakes, exit codes."""

import os
import resource
import subprocess
import sys

import pytest
import torch
import typer

from tetravit import cli
from tetravit.cli.app import application, catch, offered, one_line
from tetravit.cli.base import print_table

PYTHON = [sys.executable, "-m", "tetravit"]


def test_help_names_every_verb(ask):
    answer = ask("--help")
    assert answer.code == 0
    for verb in (*offered(None)[0], "weights"):
        assert f"\n  {verb} " in answer.out


def test_no_verb_shows_the_help(ask):
    assert ask().out.strip() == ask("--help").out.strip()
    assert ask().code == 0


def test_version(ask):
    assert ask("--version").out.startswith("tetravit 0.")


@pytest.mark.parametrize("verb", offered(None)[0])
def test_every_verb_has_help(ask, verb):
    answer = ask(verb, "--help")
    assert answer.code == 0
    assert answer.out.startswith(f"Usage: tetravit {verb} ")


@pytest.mark.parametrize(("verb", "spins"), [("train", "2000"), ("benchmark", "20000")])
def test_threads_spin_for_as_long_as_suits_the_verb(monkeypatch, verb, spins):
    for own in (None, "7"):  # what the user says counts
        monkeypatch.setenv("GOMP_SPINCOUNT", own or "")
        if own is None:
            monkeypatch.delenv("GOMP_SPINCOUNT")
        with pytest.raises(SystemExit):
            cli.main([verb, "--help"])
        assert os.environ["GOMP_SPINCOUNT"] == (own or spins)


def test_help_imports_nothing_heavy():
    heavy = "{'torch', 'torchvision', 'numpy', 'pydantic', 'rich', 'PIL'} & sys.modules.keys()"
    code = f"import sys\nfrom tetravit.cli import main\ntry: main(['--help'])\nfinally: print({heavy} or 'light')"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert found.stdout.splitlines()[-1] == "light"


def test_help_takes_less_than_three_tenths_of_a_second():
    """Of the processor's time, the best of three: a busy machine is no slower program."""
    taken = []
    for _ in range(3):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        subprocess.run([*PYTHON, "--help"], check=True, stdout=subprocess.DEVNULL)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        taken.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
    assert min(taken) < 0.3


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["lits"], "tetravit: No such command 'lits'. Did you mean 'list'? See `tetravit --help`.\n"),
        (["show"], "tetravit show: Missing argument 'name'. See `tetravit show --help`.\n"),
        (
            ["weights", "fetc"],
            "tetravit weights: No such command 'fetc'. Did you mean 'fetch'? See `tetravit weights ",
        ),
        (["list", "--jsn"], "tetravit list: No such option: --jsn"),
        (["benchmark", "deit_tiny", "--rounds", "0"], "tetravit benchmark: Invalid value for '--rounds': "),
        (["benchmark", "deit_tiny", "--rounds", "x"], "tetravit benchmark: Invalid value for '--rounds': "),
    ],
    ids=["verb", "argument", "verb of a group", "option", "range", "type"],
)
def test_a_wrong_command_line_is_one_line(ask, arguments, text):
    answer = ask(*arguments)
    assert answer.code == 2
    assert answer.err.startswith(text)
    assert answer.err.count("\n") == 1
    assert answer.out == ""


def test_a_reader_that_leaves_is_no_error():
    """`tetravit list models --json | head -1`"""
    reading, writing = os.pipe()
    child = subprocess.Popen([*PYTHON, "list", "recipes", "--json"], stdout=writing, stderr=subprocess.PIPE)
    os.close(reading)
    os.close(writing)
    _, err = child.communicate(timeout=60)
    assert (child.returncode, err) == (1, b"")


def test_our_own_faults_keep_their_traceback():
    def broken() -> None:
        raise RuntimeError("no user did this")

    with pytest.raises(RuntimeError, match="no user did this"):
        catch("broken")(broken)()


def test_a_mistake_is_one_line_and_exit_code_2(capsys):
    def wrong() -> None:
        raise ValueError("Two lines\n  become one.")

    with pytest.raises(typer.Exit) as ended:
        catch("verb")(wrong)()
    assert ended.value.exit_code == 2
    assert capsys.readouterr().err == "tetravit verb: Two lines become one.\n"


@pytest.mark.parametrize(
    ("error", "verb", "said"),
    [
        (
            RuntimeError(
                "[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 4294967296 bytes."
            ),
            "train",
            "The memory of this machine does not suffice (4.0 GiB more). run.accumulate=2, or more, takes the same"
            " steps in smaller parts, and run.recompute=true stores fewer values; both go with --resume RUN too.",
        ),
        (
            torch.OutOfMemoryError(
                "CUDA out of memory. Tried to allocate 2.50 GiB. GPU 0 has a total capacity of ..."
            ),
            "predict",
            "The memory of the GPU does not suffice (2.50 GiB more). --batch 1 takes one image at once.",
        ),
        (
            MemoryError(),
            "export",
            "The memory of this machine does not suffice. A smaller model or image size takes less.",
        ),
    ],
)
def test_memory_that_does_not_suffice_is_one_line_with_its_cure(error, verb, said, capsys):
    def large() -> None:
        raise error

    with pytest.raises(typer.Exit) as ended:
        catch(verb)(large)()
    assert ended.value.exit_code == 2
    assert capsys.readouterr().err == f"tetravit {verb}: {said}\n"


def test_traceback_shows_where(ask, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["tetravit", "--traceback", "list", "mdels"])
    answer = ask("--traceback", "list", "mdels")
    assert answer.code == 2
    assert "Traceback (most recent call last):" in answer.err
    assert answer.err.endswith("tetravit list: Unknown kind of name 'mdels'. Did you mean 'models'?\n")


def test_errors_of_the_system_name_the_file(tmp_path):
    with pytest.raises(OSError) as error:
        (tmp_path / "none").read_text()
    assert one_line(error.value) == f"{tmp_path}/none: No such file or directory."


def test_errors_of_pydantic_name_the_place():
    from pydantic import BaseModel, ValidationError

    class Section(BaseModel):
        number: int

    with pytest.raises(ValidationError) as error:
        Section(number="x")
    assert one_line(error.value).startswith("number: Input should be a valid integer")
    assert "\n" not in one_line(error.value)


def test_the_app_offers_completion(ask):
    assert "--install-completion" in ask("--help").out
    assert application().info.name == "tetravit"


@pytest.mark.parametrize(
    ("rows", "title"),
    [
        ([["x", 1, None], ["yyyy", 22222, "z"]], None),
        ([["x", 1, None]], "T"),
        ([["x", 1, None]], "A title longer than the table"),
        ([], None),
        ([["größer", 1, "z"]], None),
        ([["x" * 200, 1, "words " * 20]], None),
        ([["two\nlines", 1, "z"]], None),
    ],
)
def test_a_table_in_a_pipe_is_the_one_of_a_terminal(rows, title, monkeypatch, capsys):
    columns = ["a", "bee", ""]
    print_table(columns, rows, title=title, right=["bee"])
    quick = capsys.readouterr().out
    monkeypatch.setattr("tetravit.cli.base._plain_table", lambda *args: None)
    print_table(columns, rows, title=title, right=["bee"])
    assert quick == capsys.readouterr().out


def test_one_verb_loads_no_other():
    code = "import sys; from tetravit.cli.app import application; application('list'); print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    loaded = set(done.stdout.split())
    assert "tetravit.cli.list" in loaded
    assert not loaded & {"tetravit.cli.predict", "tetravit.cli.embed", "tetravit.explainers", "rich"}


@pytest.mark.parametrize("word", ["trian", "resume", "weight"])
def test_an_unknown_verb_is_compared_with_all(word):
    assert {"train", "predict"} <= set(offered(word)[0])


def test_rows_of_a_table_may_end_early(capsys):
    print_table(["image", "1.", "2."], [["a.png", "road", "sky"], ["b.png", "road"], ["c.png"]])
    lines = [line.rstrip() for line in capsys.readouterr().out.splitlines()]
    assert lines[3:6] == [" a.png   road   sky", " b.png   road", " c.png"]
