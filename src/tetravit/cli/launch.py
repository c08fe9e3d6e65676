"""`tetravit launch`: a verb on several processes or machines, by torchrun, with the exit code of the run."""

from itertools import pairwise
from typing import Annotated

import typer

from tetravit.cli.base import check_recipe

VALUED = ("--into", "--resume", "--log", "--slurm")  # options of `train` that take a value


def launch(
    arguments: Annotated[
        list[str],
        typer.Argument(
            metavar="[TORCHRUN OPTIONS]... train RECIPE ...",
            help="What torchrun takes, and then the verb: --nproc-per-node 8 --max-restarts 3 train digits"
            " --into RUN --continue",
        ),
    ],
) -> None:
    """Train on several processes: a signal saves the run and exits with 75; a lost process is restarted."""
    if "train" not in arguments:
        raise ValueError(
            "launch takes options of torchrun and then train: tetravit launch --nproc-per-node 2 train digits."
        )
    at = arguments.index("train")
    words = [word for text in arguments[:at] for word in text.split("=", 1)]
    for option, value in pairwise(words):
        name = option.replace("_", "-")
        if name in ("--nproc-per-node", "--nnodes") and value.lstrip("-").isdecimal() and int(value) < 1:
            raise ValueError(f"{option} is 1 or more; got {value}.")
    check_arguments(arguments[at + 1 :])
    from tetravit.engine.launch import launch as run

    code = run(arguments[:at], arguments[at:])
    if code:
        raise typer.Exit(code)


def check_arguments(arguments: list[str]) -> None:
    """Load the recipe once, so that an error in it is reported in one line before any process starts.

    Raises:
        ValueError: for an unknown recipe, or an invalid change of it.
    """
    given, skip = list[str](), False
    for text in arguments:
        if not skip and not text.startswith("-"):
            given.append(text)
        skip = not skip and text in VALUED
    if given and "--resume" not in arguments:
        check_recipe(given[0])
        from tetravit.recipe import find, load

        load(find(given[0]), given[1:])


# Options are torchrun's or the verb's; this command has none.
launch.context_settings = {"ignore_unknown_options": True, "allow_interspersed_args": False}  # type: ignore[attr-defined]

VERBS = {"launch": launch}
