"""`tetravit copy`: start from a shipped recipe."""

from pathlib import Path
from typing import Annotated

import typer

from tetravit.cli.base import complete_recipes, recipe_files, say
from tetravit.registry import pick


def copy(
    recipe: Annotated[
        str, typer.Argument(help="A name from `tetravit list recipes`.", autocompletion=complete_recipes)
    ],
    file: Annotated[Path, typer.Argument(help="Where to write it; a folder takes the recipe's own name.")],
) -> None:
    """Copy a recipe to a file of your own, comments included."""
    source = pick(recipe_files(), recipe, "recipe")
    if file.is_dir():
        file = file / source.name
    file = file if file.suffix == ".toml" else file.with_name(f"{file.name}.toml")
    with open(file, "x", encoding="utf-8") as out:  # never overwrite a file
        out.write(source.read_text(encoding="utf-8"))
    say(f"Wrote {file}. Train it: tetravit train {file}")


VERBS = {"copy": copy}
