"""Parameters and multiply-adds of a model, counted on meta tensors.

`python -m tetravit.benchmark.flops` counts every model at its paper's size and rewrites counts.json and models.json,
which `tetravit list models` and `tetravit show` print without loading torch; a test compares them with the models.
"""

import copy
import inspect
import json
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from tetravit.backbones import ALIASES, VARIANTS
from tetravit.layers.class_attention import ClassAttention
from tetravit.models import create_backbone, create_model, family, list_models, resolve

TABLE = Path(__file__).parent / "counts.json"
MODELS = Path(__file__).parent / "models.json"


@dataclass(frozen=True)
class Counts:
    """Counts for one image of `image_size` pixels a side.

    macs: multiply-adds in convolutions, matrix products and attention of the published model, with all tokens in
        all blocks; papers call them "FLOPs" or "G".
    inference_macs: multiply-adds of this package for logits: the last block is computed for the class token alone.
    flops: operations, 2 per multiply-add, as PyTorch's counter counts them.
    """

    image_size: int
    params: int
    macs: int
    inference_macs: int

    @property
    def flops(self) -> int:
        return 2 * self.macs


def paper_size(name: str) -> int:
    """The side in pixels of the images for which a model is defined."""
    row = VARIANTS[resolve(name)]
    return int(row.keywords.get("image_size", 224))


def count(name: str, *, image_size: int | None = None, num_classes: int = 1000) -> Counts:
    """Count a model by name at `image_size` pixels a side; None: the paper's.

    Raises:
        ValueError: if there is no such model.
    """
    side = image_size or paper_size(name)
    with torch.device("meta"):  # shapes only
        model = create_model(name, num_classes=num_classes, image_size=side).eval()
        images = torch.empty(1, 3, side, side)
    params = sum(p.numel() for p in model.parameters())
    return Counts(side, params, count_macs(model, images), count_inference_macs(model, images))


def count_macs(model: nn.Module, images: torch.Tensor) -> int:
    """Multiply-adds of the whole model for these images, as computed by its authors' code.

    There the last block with a class token is computed for all tokens, and class attention projects all queries.
    """
    shapes, extra = copy.deepcopy(model), 0

    def count_queries(module: ClassAttention, inputs: tuple[torch.Tensor, torch.Tensor], _: Any) -> None:
        nonlocal extra
        extra += inputs[1].numel() * module.q.out_features

    for module in shapes.modules():
        if isinstance(module, ClassAttention):
            module.register_forward_hook(count_queries)
        if isinstance(
            module, nn.LayerNorm
        ):  # the last block is shortened in front of a norm without hooks alone
            module.register_forward_hook(lambda *_: None)
    return count_inference_macs(shapes, images) + extra


def count_inference_macs(model: nn.Module, images: torch.Tensor) -> int:
    """Multiply-adds of `model(images)` as this package computes it."""
    # On meta tensors every product is an operation of PyTorch with a formula.
    shapes = copy.deepcopy(model).to("meta").requires_grad_(False)
    with torch.no_grad(), _Products() as products:
        shapes(images.to("meta"))
    return products.flops // 2


class _Products(TorchDispatchMode):
    """Sums PyTorch's formulas of operations. Its own counter sets global hooks, which turn shortened blocks off."""

    def __init__(self) -> None:
        super().__init__()
        self.flops = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        formula = flop_registry.get(func._overloadpacket)
        if formula is not None:
            self.flops += formula(*args, **(kwargs or {}), out_val=out)
        return out


@cache
def table() -> dict[str, Counts]:
    """The counts that come with the package, by model name."""
    return {name: Counts(**row) for name, row in json.loads(TABLE.read_text()).items()}


def counts(name: str) -> Counts:
    """The counts of a model at its paper's size: from the table, or counted anew."""
    return table().get(resolve(name)) or count(name)


def description(name: str, image_size: int | None = None) -> dict[str, Any]:
    """The options of a model, and the shapes of its maps at `image_size` (None: the paper's); JSON-ready."""
    name = resolve(name)
    row = VARIANTS[name]
    side = image_size or paper_size(name)
    with torch.device("meta"):
        model = create_backbone(name, image_size=side).eval()
        maps = model(torch.empty(1, 3, side, side))
    return {
        "family": family(name),
        "aliases": sorted(alias for alias, target in ALIASES.items() if target == name),
        "paper": " ".join((inspect.getdoc(inspect.getmodule(row.func)) or "").partition("\n\n")[0].split()),
        "paper_size": paper_size(name),
        "embed_dim": model.backbone.embed_dim,
        "options": json.loads(json.dumps(row.keywords)),
        "pyramid": [
            {"stride": stride, "shape": list(x.shape[1:])}
            for stride, x in zip(model.strides, maps, strict=True)
        ],
    }


def write_tables() -> None:
    names = list_models()
    for file, rows in (
        (TABLE, {name: asdict(count(name)) for name in names}),
        (MODELS, {name: description(name) for name in names}),
    ):
        lines = ",\n".join(f"  {json.dumps(name)}: {json.dumps(row)}" for name, row in rows.items())
        file.write_text(f"{{\n{lines}\n}}\n")


if __name__ == "__main__":
    write_tables()
