"""Video object segmentation on DAVIS 2017 (arXiv:1704.00675) by label propagation, as in DINO's evaluation.

`evaluate.root` contains JPEGImages/480p, Annotations/480p and ImageSets/2017/val.txt. No training; see
`metrics.video`. The standard deviation of blue is 0.228, as in the authors' script.
Source: facebookresearch/dino@7c446df eval_video_segmentation.py.
"""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from tetravit.metrics.video import boundary, first_labels, label_map, propagate, region, statistics
from tetravit.protocols.base import Loaders, Protocol, Scores, device_of
from tetravit.protocols.parts.features import backbone_of, fine_features
from tetravit.protocols.parts.pictures import RootConfig, folder, listed, normalised, picture

MEAN, STD = (0.485, 0.456, 0.406), (0.228, 0.224, 0.225)


class VideoConfig(RootConfig):
    """The `[evaluate]` section of video object segmentation."""

    context: int = Field(default=7, ge=0, description="Preceding frames used besides the first one.")
    radius: int = Field(default=12, ge=0, description="Neighbourhood in tokens to each side; 0: unlimited.")
    topk: int = Field(default=5, ge=1, description="Number of most similar tokens.")
    temperature: float = Field(default=0.1, gt=0, description="Divides the similarities.")
    short: int = Field(default=480, ge=32, description="Short side of the frames in pixels.")
    out: str = Field(default="", description="A folder for the label maps, as indexed PNG.")


class Video(Protocol):
    """jf: average of the means of J (region) and F (boundary); j_mean, j_recall, j_decay and the same for F.

    findings: J and F per object.
    """

    name = "video"
    kinds = ()
    primary_metrics = ("jf",)
    reads_data = False
    Config = VideoConfig

    def score(self, model: nn.Module, loaders: Loaders) -> Scores:
        frames_root = folder(self.config, "JPEGImages", "480p")
        masks_root = folder(self.config, "Annotations", "480p")
        names = _sequences(Path(self.config.root), masks_root)
        objects: list[dict[str, Any]] = []
        frames = 0
        for name in names:
            files, masks = listed(frames_root / name), listed(masks_root / name)
            if len(files) != len(masks) or len(files) < 3:
                raise ValueError(
                    f"{name} has {len(files)} frames and {len(masks)} label maps in {self.config.root}."
                )
            truth = np.stack([np.array(Image.open(path)) for path in masks])
            predicted = self.segmented(backbone_of(model), files, truth[0], device_of(model))
            frames += len(files)
            if self.config.out:
                _write(Path(self.config.out) / name, files, predicted, Image.open(masks[0]).getpalette())
            objects += _judged(name, truth, predicted)
        values = {}
        for key in ("j", "f"):
            for statistic in ("mean", "recall", "decay"):
                values[f"{key}_{statistic}"] = float(np.mean([row[f"{key}_{statistic}"] for row in objects]))
        values["jf"] = (values["j_mean"] + values["f_mean"]) / 2
        return Scores(values, {"count": frames, "objects": objects})

    def segmented(
        self, backbone: Any, files: list[Path], first: np.ndarray, device: torch.device
    ) -> np.ndarray:
        """Label maps (T, h, w) of a sequence from that of its first frame."""
        config = self.config
        feature_maps = [fine_features(backbone, _frame(f, config.short).to(device)) for f in files]
        features, stride = torch.cat([maps for maps, _ in feature_maps]), feature_maps[0][1]
        grid = (features.shape[2], features.shape[3])
        labels = first_labels(torch.from_numpy(first.astype(np.int64)), grid)
        soft = propagate(
            features,
            labels.to(device),
            context=config.context,
            radius=config.radius,
            topk=config.topk,
            temperature=config.temperature,
        )
        maps = [first, *(label_map(s, stride, first.shape).cpu().numpy() for s in soft[1:])]
        return np.stack(maps)


def _sequences(root: Path, masks_root: Path) -> list[str]:
    listing = root / "ImageSets" / "2017" / "val.txt"
    if listing.is_file():
        return listing.read_text().split()
    return sorted(path.name for path in masks_root.iterdir() if path.is_dir())


def _frame(path: Path, short: int) -> Tensor:
    """Resize a frame (1, 3, h, w), bilinear: short side `short`, long side rounded to a multiple of 64."""
    image = normalised(picture(path), MEAN, STD)
    height, width = image.shape[2:]
    low, high = min(height, width), max(height, width)
    long = int(short * high / low) // 64 * 64
    size = (short, long) if height <= width else (long, short)
    return F.interpolate(image, size=size, mode="bilinear", align_corners=False)


def _judged(name: str, truth: np.ndarray, predicted: np.ndarray) -> list[dict[str, Any]]:
    """J and F of every object, without the first and last frame."""
    rows = []
    for number in range(1, int(truth.max()) + 1):
        a, b = truth[1:-1] == number, predicted[1:-1] == number
        row: dict[str, Any] = {"sequence": name, "object": number}
        for key, scores in (("j", region(a, b)), ("f", boundary(a, b))):
            row |= dict(
                zip((f"{key}_mean", f"{key}_recall", f"{key}_decay"), statistics(scores), strict=True)
            )
        rows.append(row)
    return rows


def _write(path: Path, files: list[Path], maps: np.ndarray, palette: list[int] | None) -> None:
    path.mkdir(parents=True, exist_ok=True)
    for file, labels in zip(files, maps, strict=True):
        image = Image.fromarray(labels.astype(np.uint8), mode="P")
        if palette:
            image.putpalette(palette)
        image.save(path / f"{file.stem}.png")


PROTOCOLS = {"video": Video}
