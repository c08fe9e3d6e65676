"""Retrieval in revisited Oxford and Paris (Radenovic et al. 2018, arXiv:1803.11285), as in DINO's evaluation.

`evaluate.root` contains gnd_roxford5k.pkl (or gnd_rparis6k.pkl) and the images in jpg/. The ground truth is read
without running code. Oxford: long side 224, one scale; Paris: long side 512, three scales. Images are never enlarged.
Queries are whole images, as in DINO's script; the benchmark itself crops them (`crop_queries`).
Source: facebookresearch/dino@7c446df eval_image_retrieval.py.
"""

from pathlib import Path
from typing import Any, Literal

import torch
from PIL import Image
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from tetravit.metrics.retrieval import mean_ap, ranking, read_ground_truth
from tetravit.protocols.base import Loaders, Protocol, Scores, device_of
from tetravit.protocols.parts.features import backbone_of
from tetravit.protocols.parts.pictures import RootConfig, folder, normalised, picture

SETS = {"roxford5k": (224, False), "rparis6k": (512, True)}  # long side, several scales
SCALES = (1.0, 2**-0.5, 0.5)


class RetrievalConfig(RootConfig):
    """The `[evaluate]` section of retrieval."""

    set: Literal["auto", "roxford5k", "rparis6k"] = Field(
        default="auto", description="The set in root; auto: by its ground truth file."
    )
    size: int = Field(default=0, ge=0, description="Long side in pixels; 0: as in DINO's script.")
    crop_queries: bool = Field(
        default=False,
        description="Crop queries to their boxes, as in the benchmark, but not in DINO's script.",
    )


class RetrievalProtocol(Protocol):
    """map_M, map_H, map_E: mean average precision; mp@1, @5, @10 of each.

    findings: the settings behind the scores, and average precision per query.
    """

    name = "retrieval"
    kinds = ()
    primary_metrics = ("map_M",)
    reads_data = False
    Config = RetrievalConfig

    def score(self, model: nn.Module, loaders: Loaders) -> Scores:
        config = self.config
        root = folder(config)
        name = next(
            (s for s in SETS if config.set in ("auto", s) and (root / f"gnd_{s}.pkl").is_file()), None
        )
        if name is None:
            known = " or ".join(f"gnd_{s}.pkl" for s in SETS if config.set in ("auto", s))
            raise ValueError(f"{root} has no {known}.")
        truth = read_ground_truth(root / f"gnd_{name}.pkl")
        size, several = SETS[name]
        size = config.size or size
        scales = SCALES if several else SCALES[:1]
        device, backbone = device_of(model), backbone_of(model)

        def embedded(file: str, box: Any = None) -> Tensor:
            image = picture(_image(root, file))
            if box is not None:
                image = image.crop(tuple(round(v) for v in box))
            image.thumbnail((size, size), Image.Resampling.LANCZOS)
            return multi_scale(backbone, normalised(image).to(device), scales)

        database = torch.cat([embedded(file) for file in truth["imlist"]])
        queries = torch.cat(
            [
                embedded(file, row["bbx"] if config.crop_queries else None)
                for file, row in zip(truth["qimlist"], truth["gnd"], strict=True)
            ]
        )
        ranks = ranking(F.normalize(queries, dim=1), F.normalize(database, dim=1)).cpu()
        values, aps = {}, {}
        for protocol in ("M", "H", "E"):
            result = mean_ap(ranks, truth["gnd"], protocol)
            values[f"map_{protocol}"] = result.map
            for k, share in zip((1, 5, 10), result.mean_precisions, strict=True):
                values[f"mp{k}_{protocol}"] = share
            aps[protocol] = result.aps.tolist()
        how = {"set": name, "size": size, "scales": len(scales), "crop_queries": config.crop_queries}
        return Scores(values, {"count": len(truth["imlist"]), "settings": how, "aps": aps})


def multi_scale(embed: Any, images: Tensor, scales: tuple[float, ...]) -> Tensor:
    """The mean embedding over several scales (B, C), normalised if there is more than one scale."""
    if scales == (1.0,):
        return embed(images)
    total: Any = 0
    for s in scales:
        scaled = images
        if s != 1:
            scaled = F.interpolate(images, scale_factor=s, mode="bilinear", align_corners=False)
        total = total + embed(scaled)
    mean = total / len(scales)
    return mean / mean.norm()


def _image(root: Path, name: str) -> Path:
    return root / "jpg" / (name if name.endswith(".jpg") else f"{name}.jpg")


PROTOCOLS = {"retrieval": RetrievalProtocol}
