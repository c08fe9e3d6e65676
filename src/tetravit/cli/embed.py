"""`tetravit embed`: write the features of images to a file."""

import csv
import importlib.util
from pathlib import Path
from typing import Annotated, Any

import typer

from tetravit.cli.base import AcceptLicense, progress, say
from tetravit.cli.parts.bulk import (
    Data,
    DryRun,
    EngineName,
    EngineOptions,
    Only,
    Processes,
    To,
    Unit,
    run_bulk,
)

ENDINGS = (".npz", ".csv", ".parquet")


def embed(
    weights: Annotated[str, typer.Argument(help="A run folder, a weights file, or a published name.")],
    images: Annotated[
        list[str] | None,
        typer.Argument(metavar="[IMAGE...]", help="Image files, folders, or quoted patterns."),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="FILE.npz (features, names), FILE.csv or FILE.parquet."),
    ] = None,
    batch: Annotated[int, typer.Option(metavar="N", min=1, help="Images per call of the model.")] = 32,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:N or mps.")] = "auto",
    accept_license: AcceptLicense = False,
    data: Data = None,
    to: To = None,
    engine: EngineName = "local",
    processes: Processes = 0,
    unit: Unit = 1000,
    engine_options: EngineOptions = None,
    only: Only = None,
    dry_run: DryRun = False,
) -> None:
    """Write the embedding of every image to a file; with --data, embeddings of many images to a folder.

    Units are written atomically; the same command continues an interrupted one.
    """
    if data is not None:
        if images or out is not None:
            raise ValueError("embed --data DIR --to OUT takes neither IMAGE nor --out.")
        run_bulk(
            "embed",
            weights,
            data,
            to,
            engine=engine,
            processes=processes,
            unit=unit,
            engine_options=engine_options,
            only=only,
            dry_run=dry_run,
            batch=batch,
            device=device,
            accept_license=accept_license,
        )
        return
    if not images or out is None:
        raise ValueError("embed takes IMAGE... --out FILE, or --data DIR --to OUT.")
    if out.suffix not in ENDINGS:
        raise ValueError(f"embed writes {', '.join(ENDINGS)}; got {str(out)!r}.")
    if out.suffix == ".parquet" and importlib.util.find_spec("pyarrow") is None:
        raise ValueError("A .parquet file needs the extra: pip install 'tetravit[parquet]'.")
    import torch

    from tetravit.models import load
    from tetravit.predictors.parts.sources import find_images
    from tetravit.protocols.parts.features import backbone_of
    from tetravit.world import pick_device

    where = pick_device(device)
    files = find_images(images)
    model = load(weights, accept_license=accept_license)
    network: Any = model.to(where).eval()
    backbone = backbone_of(network)
    rows, names = [], []
    with progress("images") as advance, torch.inference_mode():
        for start in range(0, len(files), batch):
            some = files[start : start + batch]
            advance(len(some))
            prepared = [network.preprocess(file) for file in some]
            same = all(image.shape == prepared[0].shape for image in prepared)
            groups = [torch.stack(prepared)] if same else [image[None] for image in prepared]
            rows += [backbone(group.to(where)).float().cpu() for group in groups]
            names += [str(file) for file in some]
    features = torch.cat(rows).numpy()
    _write(out, features, names)
    say(f"Wrote {len(names)} embeddings of {features.shape[1]} numbers to {out}.")


def _write(out: Path, features: Any, names: list[str]) -> None:
    import numpy as np

    from tetravit.files import atomic

    columns = [f"f{i}" for i in range(features.shape[1])]
    if out.suffix == ".npz":
        with atomic(out) as file:
            np.savez(file, features=features, names=np.array(names))
    elif out.suffix == ".csv":
        with open(out, "w", encoding="utf-8", newline="") as text:
            writer = csv.writer(text)
            writer.writerow(["name", *columns])
            writer.writerows(
                [name, *map(repr, row)] for name, row in zip(names, features.tolist(), strict=True)
            )
    else:
        pyarrow: Any = importlib.import_module("pyarrow")
        parquet: Any = importlib.import_module("pyarrow.parquet")
        table = {"name": names, **dict(zip(columns, features.T, strict=True))}
        parquet.write_table(pyarrow.table(table), out)


VERBS = {"embed": embed}
