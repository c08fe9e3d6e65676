"""`tetravit data`: data sets that are made here."""

from pathlib import Path
from typing import Annotated

import typer

from tetravit.cli.base import Group, progress, say
from tetravit.registry import pick

SETS = ("shapes",)


def make(
    name: Annotated[str, typer.Argument(help="What to make: shapes.")],
    to: Annotated[Path, typer.Option(metavar="DIR", help="Where to; made if it is not there.")],
    train: Annotated[int, typer.Option(metavar="N", min=1, help="Images to train on.")] = 1000,
    val: Annotated[int, typer.Option(metavar="N", min=1, help="Images to validate on.")] = 100,
    size: Annotated[int, typer.Option(metavar="PX", help="Side of an image.")] = 128,
    seed: Annotated[int, typer.Option(metavar="N", min=0, help="Other images.")] = 0,
) -> None:
    """Draw a set of images and write it in the layouts of classification, COCO and ADE20K."""
    pick(dict.fromkeys(SETS), name, "drawn data set")
    from tetravit.data.layouts import write_shapes

    with progress("drawings") as advance:
        for _ in write_shapes(to, train=train, val=val, size=size, seed=seed):
            advance(1)
    say(f"Drew {train} + {val} images of {size} x {size} pixels into {to}: folders, coco, ade20k.")


GROUPS = {"data": Group("Make data sets.", {"make": make})}
