"""The work of one unit: read its images, run the model, write a table atomically.

Columns: `name`, `error` (why an image cannot be read, else null), and `embedding` (float32, fixed length) or
`prediction` (JSON of `tetravit predict --json`, without the name).
"""

import functools
import importlib
import json
import multiprocessing
from collections.abc import Iterator
from typing import Any, cast

import torch
from torch import Tensor

from tetravit.bulk.parts.plan import Plan, Unit
from tetravit.data.decode import BadImage, decode
from tetravit.data.shards.source import ShardSource
from tetravit.data.storage import storage_of
from tetravit.files import atomic
from tetravit.models import load
from tetravit.predictors import stream
from tetravit.predictors.parts.predictions import Frame, in_chunks
from tetravit.protocols.parts.features import backbone_of
from tetravit.world import pick_device

Image = tuple[str, str | bytes]  # name; its path, or its bytes


def do_unit(plan: Plan, unit: Unit, device: str) -> None:
    """Write the results of a unit.

    Raises:
        StorageError: if its images cannot be read from their disk or server.
    """
    model, where = _model(plan.model, plan.accept_license, _own_device(device))
    images = _images(plan, unit)
    if plan.verb == "embed":
        columns = _embedded(model, where, images, plan.batch)
    else:
        columns = _predicted(model, where, images, plan)
    pyarrow: Any = importlib.import_module("pyarrow")
    parquet: Any = importlib.import_module("pyarrow.parquet")
    with atomic(plan.file(unit)) as file:
        parquet.write_table(pyarrow.table(_typed(columns, pyarrow)), file)


@functools.lru_cache(maxsize=1)
def _model(name: str, accept_license: bool, device: str) -> tuple[Any, torch.device]:
    """The model on its device; loaded once in a process."""
    where = pick_device(device)
    return load(name, accept_license=accept_license).to(where).eval(), where


def _own_device(device: str) -> str:
    """Distribute processes over the GPUs of a machine."""
    identity = multiprocessing.current_process()._identity
    if identity and device in ("auto", "cuda") and torch.cuda.is_available():
        return f"cuda:{(identity[-1] - 1) % torch.cuda.device_count()}"
    return device


def _images(plan: Plan, unit: Unit) -> Iterator[Image]:
    if unit.part:
        source = ShardSource(plan.data, unit.part)
        for index in range(unit.first, unit.first + unit.count):
            name, data = source.read(index)
            yield name.removeprefix(f"{plan.data.rstrip('/')}/"), data
    else:
        storage = storage_of(plan.data)
        for name in plan.names(unit):
            yield name, storage.join(plan.data, name)


def _embedded(model: Any, where: torch.device, images: Iterator[Image], batch: int) -> dict[str, Any]:
    backbone = backbone_of(model)
    names, errors, rows = list[str](), list[str | None](), list[Tensor | None]()

    def read(image: Any) -> Tensor:
        prepared: Tensor = model.preprocess(decode(image[1], name=image[0]))
        return prepared

    with torch.inference_mode():
        chunks: Any = in_chunks(cast(Any, images), batch, read)
        for some, prepared in chunks:
            names += [name for name, _ in some]
            errors += [x.cause if isinstance(x, BadImage) else None for x in prepared]
            good = [x for x in prepared if isinstance(x, Tensor)]
            same = len({x.shape for x in good}) == 1
            groups = [torch.stack(good)] if same else [x[None] for x in good]
            features = [row for group in groups for row in backbone(group.to(where)).float().cpu()]
            pending = iter(features)
            rows += [next(pending) if isinstance(x, Tensor) else None for x in prepared]
    width = next((len(row) for row in rows if row is not None), backbone.embed_dim)
    return {"name": names, "error": errors, "embedding": rows, "width": width}


def _predicted(model: Any, where: torch.device, images: Iterator[Image], plan: Plan) -> dict[str, Any]:
    names, errors = list[str](), dict[int, str]()

    def frames() -> Iterator[Frame]:
        for image in images:
            names.append(image[0])
            try:
                yield Frame(image[0], decode(image[1], name=image[0]))
            except BadImage as error:
                errors[len(names) - 1] = error.cause

    lines = []
    for prediction in stream(model, frames(), batch_size=plan.batch, device=where, **dict(plan.options)):
        row = prediction.to_dict()
        del row["image"]
        lines.append(json.dumps(row, ensure_ascii=False))
    rows = iter(lines)
    predictions = [None if i in errors else next(rows) for i in range(len(names))]
    return {"name": names, "error": [errors.get(i) for i in range(len(names))], "prediction": predictions}


def _typed(columns: dict[str, Any], pyarrow: Any) -> dict[str, Any]:
    names = [name.encode("utf-8", "replace").decode() for name in columns["name"]]
    table = {
        "name": pyarrow.array(names, pyarrow.string()),
        "error": pyarrow.array(columns["error"], pyarrow.string()),
    }
    if "embedding" in columns:
        rows = [None if row is None else row.numpy() for row in columns["embedding"]]
        table["embedding"] = pyarrow.array(rows, pyarrow.list_(pyarrow.float32(), columns["width"]))
    else:
        table["prediction"] = pyarrow.array(columns["prediction"], pyarrow.string())
    return table
