"""Where the time of a segmenter goes: backbone and head, forward and backward, beside the floor of their products.

    python benchmarks/segmentation_split.py [--models twins_svt_small,xcit_small_12_p16] [--repeats 5] [--threads 2]

A training step of UPerNet on crops of 512 pixels, and whole-image inference at 512 x 683. The floor is the time
that the multiplications and additions of convolutions and matrix products alone take at the rate that one large
float32 product reaches on this machine in the same run. `copies` counts tensors of the size of the finest map or
larger that a part copies without computing anything; `joined` those that it puts side by side.
"""

import argparse
import json
import platform
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from tetravit.models import Segmenter, create_segmenter

COPIES = {"aten.clone.default", "aten.copy_.default", "aten._to_copy.default"}
JOINS = {"aten.cat.default", "aten.stack.default"}
SIDE = 2048  # of the product that shows the machine's rate


class Copies(TorchDispatchMode):
    """Counts copies of tensors with `smallest` numbers or more."""

    def __init__(self, smallest: int) -> None:
        super().__init__()
        self.smallest, self.copies, self.joined = smallest, 0, 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if isinstance(out, Tensor) and out.numel() >= self.smallest:
            self.copies += str(func) in COPIES
            self.joined += str(func) in JOINS
        return out


def machine_rate(repeats: int) -> float:
    """Multiplications and additions per second of one large product, the best of several."""
    a, b = torch.randn(SIDE, SIDE), torch.randn(SIDE, SIDE)
    return 2 * SIDE**3 / min(timed(lambda: a @ b) for _ in range(repeats + 2))


def timed(run: Callable[[], object]) -> float:
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


class Step:
    """A training step in four parts, which run in this order."""

    def __init__(self, model: Segmenter, images: Tensor, labels: Tensor) -> None:
        self.model, self.images, self.labels = model.train(), images, labels
        self.parts = {
            "backbone forward": self.backbone_forward,
            "head forward": self.head_forward,
            "head backward": self.head_backward,
            "backbone backward": self.backbone_backward,
        }

    def backbone_forward(self) -> None:
        self.model.zero_grad()
        self.maps = self.model.feature_maps(self.images)
        self.read = [x.detach().requires_grad_() for x in self.maps]

    def head_forward(self) -> None:
        head: Any = self.model.head
        losses = head.loss(head(self.read, None, self.labels), self.labels)
        self.loss = torch.stack(list(losses.values())).sum()

    def head_backward(self) -> None:
        self.loss.backward()

    def backbone_backward(self) -> None:
        torch.autograd.backward(self.maps, [x.grad for x in self.read])


class Answer:
    """Inference on a whole image in three parts."""

    def __init__(self, model: Segmenter, images: Tensor) -> None:
        self.model, self.images = model.eval(), images
        self.parts = {"backbone": self.backbone, "head": self.head, "label map": self.label_map}

    def backbone(self) -> None:
        with torch.inference_mode():
            self.maps = self.model.feature_maps(self.images)

    def head(self) -> None:
        with torch.inference_mode():
            self.logits = self.model.head(self.maps)

    def label_map(self) -> None:
        head: Any = self.model.head
        size = list(self.images.shape[2:])
        with torch.inference_mode():
            head.decode(self.logits, [size], size)


def rows(what: str, name: str, work: Step | Answer, rate: float, repeats: int) -> Iterator[dict[str, Any]]:
    """A row per part: seconds (median), its floor, how many times the floor that is, copies."""
    for run in work.parts.values():
        run()
    finest = work.maps[0].numel()
    flops: dict[str, int] = {}
    copied: dict[str, Copies] = {}
    for part, run in work.parts.items():
        with FlopCounterMode(display=False) as counter:
            run()
        flops[part] = counter.get_total_flops()
    for part, run in work.parts.items():
        with Copies(finest) as copied[part]:
            run()
    seconds: dict[str, list[float]] = {part: [] for part in work.parts}
    for _ in range(repeats):
        for part, run in work.parts.items():
            seconds[part].append(timed(run))
    total = sum(statistics.median(s) for s in seconds.values())
    for part in work.parts:
        median = statistics.median(seconds[part])
        floor = flops[part] / rate
        yield {
            "what": what,
            "model": name,
            "part": part,
            "ms": round(1e3 * median, 1),
            "share": round(median / total, 3),
            "gflops": round(flops[part] / 1e9, 1),
            "floor_ms": round(1e3 * floor, 1),
            "times_floor": round(median / floor, 2) if floor else None,
            "copies": copied[part].copies,
            "joined": copied[part].joined,
        }


@contextmanager
def threads(count: int | None) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(count or before)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])  # type: ignore[union-attr]
    parser.add_argument("--models", default="twins_svt_small,xcit_small_12_p16")
    parser.add_argument("--head", default="upernet")
    parser.add_argument("--crop", type=int, default=512)
    parser.add_argument("--batch", type=int, default=2)
    parser.add_argument("--image", default="512x683")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int)
    given = parser.parse_args(arguments)
    height, width = map(int, given.image.split("x"))
    with threads(given.threads):
        rate = machine_rate(given.repeats)
        machine = {"torch": torch.__version__, "threads": torch.get_num_threads(), "gflops_per_s": rate / 1e9}
        print(json.dumps({**machine, "processor": platform.processor() or platform.machine()}), flush=True)
        for name in given.models.split(","):
            torch.manual_seed(0)
            options = {"auxiliary": 0.4} if given.head == "upernet" else {}
            model = create_segmenter(name, head=given.head, num_classes=150, head_options=options)
            images = torch.randn(given.batch, 3, given.crop, given.crop)
            labels = torch.randint(150, (given.batch, given.crop, given.crop))
            for row in rows("training step", name, Step(model, images, labels), rate, given.repeats):
                print(json.dumps(row), flush=True)
            image = torch.randn(1, 3, height, width)
            for row in rows("whole image", name, Answer(model, image), rate, given.repeats):
                print(json.dumps(row), flush=True)


if __name__ == "__main__":
    main()
