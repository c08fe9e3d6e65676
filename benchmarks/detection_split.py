"""Where the time of a detector goes: backbone, neck, heads, and what is done with their outputs.

    python benchmarks/detection_split.py [--models mask_rcnn:xcit_tiny_12_p16,retinanet:twins_svt_small]
        [--size 800x1088] [--repeats 5] [--threads 2] [--clock wall]
        [--jsonl FILE]

Inference on one image, as `Detector.detect` does it, masks pasted at the size of the image. Post-processing is
everything after a layer's output: anchors, decoding, sorting, suppression, pasting; with two stages also what lies
between them. DINO-DETR (dino_detr:gcvit_tiny): its parts, the encoder's attention beside its linear layers, the head
beside a floor (its linear layers, and memory traffic at the bandwidth of a copy), and the share of matching in a
training step with 100 objects. Weights are random, those of the scores spread, so that 100
objects are found and 1000 regions compete.
The goal: post-processing below a tenth of the whole.
"""

import argparse
import json
import math
import platform
import statistics
import time
from collections.abc import Callable
from datetime import date
from pathlib import Path
from typing import Any

import torch

from tetravit.boxes.pooling import pool_regions
from tetravit.heads import dino_detr
from tetravit.heads.parts import two_stage
from tetravit.models import Detector, create_detector
from tetravit.structures import Batch, Target

MODELS = "mask_rcnn:xcit_tiny_12_p16,retinanet:twins_svt_small"
LAYERS = ("backbone", "neck", "heads")
CLOCK = time.perf_counter  # --clock processor: of this process alone, where others use the machine too


def built(name: str, head: str) -> Detector:
    """A detector whose random scores are spread, so that there is something to suppress and to paste."""
    torch.manual_seed(0)
    detector = create_detector(name, head=head).eval()
    with torch.no_grad():
        for key, parameter in detector.head.named_parameters():
            if "_convs." in key and parameter.ndim == 4:
                torch.nn.init.kaiming_normal_(parameter)
            if key.endswith("score.weight") and not key.startswith("masks."):
                parameter.normal_(std=3.0 / math.sqrt(parameter[0].numel()))
            if head == "retinanet" and key == "score.bias":
                parameter.fill_(-6.0)
    return detector


class Split:
    """Seconds per part; parts that run inside another are not counted there."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self.inner: list[float] = []

    def timed(self, part: str, call: Callable[..., Any]) -> Callable[..., Any]:
        def run(*args: Any, **kwargs: Any) -> Any:
            self.inner.append(0.0)
            start = CLOCK()
            out = call(*args, **kwargs)
            whole = CLOCK() - start
            self.seconds[part] = self.seconds.get(part, 0.0) + whole - self.inner.pop()
            if self.inner:
                self.inner[-1] += whole
            return out

        return run


def watch(detector: Detector, split: Split) -> None:
    """Time the layers of a detector wherever they are called from."""
    head: Any = detector.head
    layers: list[tuple[Any, str]] = [(head.neck, "neck")]
    if head.has_masks:
        layers += [(head.rpn.conv, "heads"), (head.rpn.score, "heads"), (head.rpn.delta, "heads")]
        layers += [(branch, "heads") for branch in (*head.boxes, *head.masks)]
        two_stage.pool_regions = split.timed("heads", pool_regions)
    else:
        layers += [(c, "heads") for c in (*head.score_convs, *head.delta_convs, head.score, head.delta)]
    for layer, part in layers:
        object.__setattr__(layer, "forward", split.timed(part, layer.forward))
    object.__setattr__(detector, "feature_maps", split.timed("backbone", detector.feature_maps))


def measure(name: str, head: str, size: tuple[int, int], repeats: int) -> dict[str, Any]:
    detector, split = built(name, head), Split()
    watch(detector, split)
    images = torch.randn(1, 3, *size)
    detect = split.timed("post-processing", detector.detect)
    rounds: list[dict[str, float]] = []
    for i in range(repeats + 1):
        split.seconds.clear()
        (found,) = detect(images, masks="pasted" if detector.head.has_masks else "none")
        if i:  # the first call warms up
            rounds.append(dict(split.seconds))
    parts = {part: statistics.median(r[part] for r in rounds) for part in (*LAYERS, "post-processing")}
    whole = sum(parts.values())
    return {
        "model": name,
        "head": head,
        "size": f"{size[0]}x{size[1]}",
        "found": len(found.boxes),
        "seconds": round(whole, 4),
        **{f"{part}_share": round(value / whole, 4) for part, value in parts.items()},
    }


def measure_dino(name: str, size: tuple[int, int], repeats: int) -> dict[str, Any]:
    """Of DINO-DETR: the parts of the head, the encoder's attention beside its own linear layers, and matching."""
    torch.manual_seed(0)
    detector, split = create_detector(name, head="dino_detr").eval(), Split()
    head: Any = detector.head
    layers: list[tuple[Any, str]] = [(x, "norms_of_projections") for x in head.input_proj]
    layers += [(x[0], "projections") for x in head.input_proj]
    for layer in head.transformer.encoder.layers:
        attention = layer.self_attn
        layers += [(layer, "encoder"), (attention, "attention")]
        layers += [(x, "attention_linear") for x in attention.children()]
        layers += [(x, "encoder_linear") for x in (layer.linear1, layer.linear2)]
    decoder = head.transformer.decoder
    layers.append((decoder, "decoder"))
    layers += [(x, "decoder_linear") for x in decoder.modules() if isinstance(x, torch.nn.Linear)]
    for module, part in layers:
        object.__setattr__(module, "forward", split.timed(part, module.forward))
    object.__setattr__(detector, "feature_maps", split.timed("backbone", detector.feature_maps))
    detect, images = split.timed("rest", detector.detect), torch.randn(1, 3, *size)
    rounds: list[dict[str, float]] = []
    for i in range(repeats + 1):
        split.seconds.clear()
        detect(images)
        if i:  # the first call warms up
            rounds.append(dict(split.seconds))
    parts = {part: statistics.median(r[part] for r in rounds) for part in rounds[0]}
    step, matching = training_step(detector, images, split)
    whole = sum(value for part, value in parts.items() if part != "backbone")
    linear = sum(value for part, value in parts.items() if part.endswith("linear") or part == "projections")
    tokens = sum((size[0] // s) * (size[1] // s) for s in (8, 16, 32, 64))
    traffic = traffic_bytes(head, tokens) / bandwidth()
    return {
        "model": name,
        "head": "dino_detr",
        "size": f"{size[0]}x{size[1]}",
        "seconds": round(sum(parts.values()), 4),
        **{f"{part}_seconds": round(value, 4) for part, value in parts.items()},
        "attention_over_linear": round(
            (parts["attention"] + parts["attention_linear"]) / parts["attention_linear"], 3
        ),
        "head_seconds": round(whole, 4),
        "floor_seconds": round(linear + traffic, 4),
        "linear_seconds": round(linear, 4),
        "traffic_seconds": round(traffic, 4),
        "head_over_floor": round(whole / (linear + traffic), 3),
        "step_seconds": round(step, 4),
        "matching_share": round(matching / step, 5),
    }


def traffic_bytes(head: Any, tokens: int) -> float:
    """Bytes that the encoder moves beside its linear layers, every tensor read and written once per operation.

    Per token and layer: sums, norms and masks of C values (20 tensors), ReLU of the hidden ones (2), offsets, points
    and weights of H L P points (4, 8 and 4 numbers), and the four rows of D values around each point.
    """
    layer = head.transformer.encoder.layers[0]
    attention = layer.self_attn
    width, points = attention.value_proj.out_features, attention.heads * attention.levels * attention.points
    rows = 4 * points * width // attention.heads
    numbers = 20 * width + 2 * layer.linear1.out_features + 16 * points + rows
    return 4.0 * numbers * tokens * len(head.transformer.encoder.layers)


def bandwidth() -> float:
    """Bytes per second of a copy between tensors beyond the caches, read and written."""
    source = torch.ones(2**26)
    target = torch.empty_like(source)
    times = []
    for _ in range(5):
        start = CLOCK()
        target.copy_(source)
        times.append(CLOCK() - start)
    return 2 * 4 * 2**26 / min(times)


def training_step(detector: Detector, images: torch.Tensor, split: Split) -> tuple[float, float]:
    """Seconds of forward and backward pass with 100 objects, and of the matching in it."""
    sides = torch.tensor([images.shape[3], images.shape[2]])
    corner = torch.rand(100, 2) * sides / 2
    boxes = torch.cat((corner, corner + sides * (0.02 + 0.4 * torch.rand(100, 2))), dim=1)
    batch = Batch(images, [Target(boxes, torch.randint(detector.num_classes, (100,)))])
    plain, dino_detr.match = dino_detr.match, split.timed("matching", dino_detr.match)
    split.seconds.clear()
    start = CLOCK()
    torch.stack(list(detector.train().loss(batch).values())).sum().backward()
    dino_detr.match = plain
    return CLOCK() - start, split.seconds["matching"]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--models", default=MODELS)
    parser.add_argument("--size", default="800x1088")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--clock", choices=("wall", "processor"), default="wall")
    parser.add_argument("--jsonl", type=Path)
    given = parser.parse_args()
    if given.clock == "processor":
        global CLOCK
        CLOCK = time.process_time
    torch.set_num_threads(given.threads)
    height, width = (int(side) for side in given.size.split("x"))
    for pair in given.models.split(","):
        head, name = pair.split(":")
        if head == "dino_detr":
            row = measure_dino(name, (height, width), given.repeats)
        else:
            row = measure(name, head, (height, width), given.repeats)
        row |= {
            "threads": given.threads,
            "clock": given.clock,
            "device": f"cpu ({platform.processor() or platform.machine()})",
            "torch": torch.__version__,
            "date": date.today().isoformat(),
        }
        print(json.dumps(row), flush=True)
        if given.jsonl:
            with given.jsonl.open("a") as file:
                file.write(json.dumps(row) + "\n")


if __name__ == "__main__":
    main()
