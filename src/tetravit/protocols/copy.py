"""Copy detection on Copydays (Douze et al. 2009), as DINO measures it, or on attacks made from any folder of images.

`evaluate.root` holds original/, strong/, jpegqual/3 ... and crops/10 ...; a folder without original/ is any set of
images, of which copies are made here by compressing and cropping. Descriptors are the embedding beside the
generalised mean of the patch features, whitened on other images (`whiten`) where there are some. The published
figures whiten on 20,000 images of YFCC100M and add 10,000 as distractors.
Source: facebookresearch/dino@7c446df eval_copy_detection.py.
"""

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from tetravit.metrics.retrieval import Whitening, average_precision
from tetravit.protocols.base import Loaders, Protocol, Scores, device_of
from tetravit.protocols.parts.features import backbone_of, fine_features
from tetravit.protocols.parts.pictures import RootConfig, folder, listed, normalised, picture

TOP = 20  # of the ranking that counts
STEM = 4  # characters of a file name that a strong attack shares with its original
QUALITIES = (3, 5, 8, 10, 15, 20, 30, 50, 75)
CROPS = (10, 15, 20, 30, 40, 50, 60, 70, 80)  # percent of the area that is cut off


class CopyConfig(RootConfig):
    """The `[evaluate]` section for copy detection."""

    whiten: str = Field(default="", description="A folder of other images on which the whitening is fitted.")
    distractors: str = Field(default="", description="A folder of images that are added to the originals.")
    size: int = Field(default=320, ge=32, description="Side in pixels; images are squeezed to a square.")
    dim: int = Field(default=0, ge=0, description="Dimensions kept by the whitening; 0: all.")


class Copy(Protocol):
    """copy_ATTACK: mean average precision over the 20 most similar images, per kind of attack."""

    name = "copy"
    kinds = ()
    primary_metrics = ("copy_strong", "copy_mean")
    reads_data = False
    Config = CopyConfig

    def score(self, model: nn.Module, loaders: Loaders) -> Scores:
        config = self.config
        root, device = folder(config), device_of(model)
        backbone = backbone_of(model)

        def described(images: Sequence[Image.Image | Path]) -> Tensor:
            rows = []
            for image in images:
                opened = picture(image) if isinstance(image, Path) else image
                square = opened.resize((config.size, config.size), Image.Resampling.BICUBIC)
                rows.append(descriptor(backbone, normalised(square).to(device))[0])
            return torch.stack(rows)

        copydays = (root / "original").is_dir()
        originals = listed(root / "original" if copydays else root)
        if not originals:
            raise ValueError(f"{root} has no images.")
        database = described(originals)
        if config.distractors:
            database = torch.cat((database, described(listed(Path(config.distractors)))))
        whitening, mean = None, None
        if config.whiten:
            others = described(listed(Path(config.whiten)))
            whitening, mean = Whitening(config.dim or others.shape[1]).fit(others), others.mean(0)

        def prepared(rows: Tensor) -> Tensor:
            return F.normalize(rows if whitening is None else whitening.apply(rows, mean), dim=1)

        database = prepared(database)
        attacks = _copydays(root, originals) if copydays else _attacks(originals)
        values = {}
        for name, (images, positives) in attacks.items():
            values[f"copy_{name}"] = copy_map(prepared(described(images)), database, positives)
        values["copy_mean"] = float(np.mean(list(values.values())))
        how = {
            "set": "Copydays" if copydays else "attacks made from the originals",
            "whitened_on": config.whiten or "nothing",
            "distractors": config.distractors or "none",
        }
        return Scores(values, {"count": len(originals), "settings": how})


@torch.no_grad()
def descriptor(backbone: Any, images: Tensor) -> Tensor:
    """The embedding beside the generalised mean of the patch features, exponent 4: (B, 2 C).

    A pyramid's patch features are those of its stage of stride 16, which are fewer than C.
    """
    patches = fine_features(backbone, images)[0].flatten(2)
    mean = patches.clamp(min=1e-6).pow(4).mean(2).pow(0.25)
    return torch.cat((backbone(images), mean), dim=1)


def copy_map(queries: Tensor, database: Tensor, positives: Sequence[Sequence[int]]) -> float:
    """Mean average precision over the first 20 of each ranking; a positive beyond them counts as not found."""
    order = (queries @ database.T).topk(min(TOP, len(database)), dim=1).indices.cpu().numpy()
    aps = [
        average_precision(np.flatnonzero(np.isin(row, wanted)), len(wanted))
        for row, wanted in zip(order, positives, strict=True)
        if len(wanted)
    ]
    return float(np.mean(aps)) if aps else float("nan")


Attack = tuple[Sequence[Image.Image | Path], list[list[int]]]


def _copydays(root: Path, originals: list[Path]) -> dict[str, Attack]:
    """Blocks of Copydays: images and, per image, the numbers of its originals."""
    blocks: dict[str, Attack] = {}
    same = [[i] for i in range(len(originals))]
    for kind, levels in (("jpegqual", QUALITIES), ("crops", CROPS)):
        for level in levels:
            images = listed(root / kind / str(level))
            if images and len(images) != len(originals):
                raise ValueError(
                    f"{root / kind / str(level)} has {len(images)} images, original/ {len(originals)}."
                )
            if images:
                blocks[f"{kind}_{level}"] = (images, same)
    if strong := listed(root / "strong"):
        stems = [path.stem[:STEM] for path in originals]
        wanted = [[i for i, stem in enumerate(stems) if stem == path.stem[:STEM]] for path in strong]
        blocks["strong"] = (strong, wanted)
    if not blocks:
        raise ValueError(f"{root} has original/ but none of strong/, jpegqual/ and crops/.")
    return blocks


def _attacks(originals: list[Path]) -> dict[str, Attack]:
    """Copies of images by JPEG compression and centre crops."""
    same = [[i] for i in range(len(originals))]
    blocks: dict[str, Attack] = {}
    for quality in QUALITIES:
        blocks[f"jpegqual_{quality}"] = ([_compressed(picture(p), quality) for p in originals], same)
    for percent in CROPS:
        blocks[f"crops_{percent}"] = ([_cropped(picture(p), percent) for p in originals], same)
    return blocks


def _compressed(image: Image.Image, quality: int) -> Image.Image:
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=quality)
    return Image.open(buffer).convert("RGB")


def _cropped(image: Image.Image, percent: int) -> Image.Image:
    """The middle of an image, less so many percent of its area."""
    share = (1 - percent / 100) ** 0.5
    width, height = (max(1, round(side * share)) for side in image.size)
    left, top = (image.width - width) // 2, (image.height - height) // 2
    return image.crop((left, top, left + width, top + height))


PROTOCOLS = {"copy": Copy}
