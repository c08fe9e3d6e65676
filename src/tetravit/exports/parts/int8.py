"""Graphs in 8 bits: quantized by NNCF on real images, controlled by equal predictions, timed beside bfloat16.

Shapes: B batch, C channels, (Hi, Wi) image in pixels.
"""

import hashlib
import io
import logging
import os
import shutil
import statistics
import tempfile
import time
from collections.abc import Iterable, Mapping, Sequence
from contextlib import redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from tetravit.data.datasets import DATASETS
from tetravit.data.files import images_below
from tetravit.data.guess import guess
from tetravit.data.preprocess import pixels
from tetravit.exports.base import KEY, Run, held
from tetravit.exports.compare import matches
from tetravit.exports.parts.certificate import Quantized, Timed
from tetravit.exports.parts.pictures import prepare
from tetravit.models.base import Model
from tetravit.models.portable import Portable, flat
from tetravit.registry import suggestion
from tetravit.runtimes.base import needs
from tetravit.structures import DataKind

MOST = 300  # images to calibrate with
HELD_OUT = 3  # every third batch of them is left for the control
WHOLE = (  # operators that stay in float32: what divides or sums many values loses its meaning in 8 bits, and NNCF
    # gives depthwise convolutions over tokens a range for each token, which fits no other size of images
    "GroupConvolution",
    *(
        "Add",
        "AvgPool",
        "Concat",
        "Divide",
        "Interpolate",
        "MVN",
        "MaxPool",
        "Maximum",
        "Minimum",
        "Multiply",
    ),
    *(
        "NormalizeL2",
        "Power",
        "ReduceL2",
        "ReduceMax",
        "ReduceMean",
        "ReduceSum",
        "Sqrt",
        "SquaredDifference",
    ),
    *("Softmax", "Subtract"),
)
KINDS = ("classify", "segment", "detect")
SECONDS = 2.0  # that each of the three forms is timed


@dataclass(frozen=True)
class Images:
    """Pictures uint8 (C, Hi, Wi) to calibrate with. text, source: what they are, in words and as it was given."""

    pictures: tuple[Tensor, ...]
    text: str
    source: str = ""

    @property
    def digest(self) -> str:
        """SHA-256 over the shapes and the pixels, in order."""
        total = hashlib.sha256()
        for picture in self.pictures:
            total.update(str(tuple(picture.shape)).encode())
            total.update(picture.numpy().tobytes())
        return total.hexdigest()


def ready() -> str:
    """The reason why nothing can be quantized here; "" where it can."""
    return needs("nncf", "int8") or needs("openvino", "int8")


def calibration_images(model: Any, data: str | Path | None, max_drop: float = 0.01) -> Images:
    """Images of a folder, or of a data set of the package that needs none (`digits`, `shapes`).

    Args:
        model: for whose task and channels they are.
        data: None: not given.
        max_drop: checked here, before the long export.

    Raises:
        ValueError: if none is given, there are no images, or they belong to another task than the model.
    """
    if data is None:
        raise ValueError("int8 needs images to calibrate with: --calibrate DIR, in Python calibrate=DIR.")
    if not 0 <= max_drop <= 1:
        raise ValueError(f"max_drop is a share of predictions, 0 to 1; got {max_drop:g}.")
    channels = model.backbone.in_chans
    folder = Path(data)
    if not folder.is_dir():
        return _of_set(model, str(data), channels)
    name = guess(folder)
    if name in DATASETS:
        _check_task(model, DATASETS[name].kind, f"{data} ({name})")
    names = images_below(str(folder), channels=channels)
    if not names:
        raise ValueError(f"There are no images in the folder {str(folder)!r}.")
    chosen = [names[i] for i in _spread(len(names))]
    read = tuple(pixels(folder / name, channels) for name in chosen)
    return Images(read, f"{len(read)} images of the folder {data}", str(data))


def _of_set(model: Any, name: str, channels: int) -> Images:
    free = [known for known, row in DATASETS.items() if not row.needs_root]
    if name not in free:
        known = suggestion(name, free)
        raise ValueError(f"--calibrate takes a folder of images or a data set; got {name!r}.{known}")
    dataset = DATASETS[name](None, "train")
    _check_task(model, dataset.info.kind, name)
    read = tuple(pixels(dataset[i].image, channels) for i in _spread(len(dataset)))
    return Images(read, f"{len(read)} images of {name}", name)


def _check_task(model: Any, kind: DataKind, name: str) -> None:
    """Raises: ValueError if images of a set of that kind are not those that the model is for."""
    wanted = getattr(model, "kind", None)
    if isinstance(model, Model) and kind not in (wanted, "unlabelled"):
        raise ValueError(
            f"Images to calibrate with are of the model's task: {name} is for {kind}; the model is a {model.noun}"
            f" ({wanted})."
        )


def _spread(count: int) -> list[int]:
    """At most `MOST` positions among `count`, evenly spaced."""
    taken = min(count, MOST)
    return [i * count // taken for i in range(taken)]


class ReferencePredictions:
    """The predictions of a model to some inputs, and the share of them that a program gives too.

    Of classifiers a prediction is the likeliest class, of segmenters that of a pixel, of detectors an object.

    Args:
        model: on the CPU, in evaluation mode.
        batches: the inputs of each call.

    Raises:
        ValueError: for a model without predictions.
    """

    def __init__(self, model: Portable, batches: Sequence[Sequence[Tensor]]) -> None:
        if getattr(model, "kind", "") not in KINDS or not getattr(model, "num_classes", 0):
            raise ValueError(
                "int8 is controlled by the predictions of a model, and features are none; export a classifier,"
                " segmenter or detector."
            )
        self.batches, self._names = batches, model.output_names
        with torch.no_grad():
            self._expected = [flat(model(*batch)) for batch in batches]

    def share(self, run: Run) -> float:
        """The share of equal predictions, in [0, 1]; 1 where there are none."""
        equal = total = 0
        for batch, expected in zip(self.batches, self._expected, strict=True):
            got = run(batch)
            if "valid" not in self._names:
                same = got[0].argmax(dim=1) == expected[0].argmax(dim=1)
                equal, total = equal + int(same.sum()), total + same.numel()
                continue
            mine, theirs = (dict(zip(self._names, x, strict=True)) for x in (got, expected))
            for i in range(len(batch[0])):
                rows = [{k: v[i][x["valid"][i].bool()] for k, v in x.items()} for x in (mine, theirs)]
                equal += len(matches(*rows))
                total += max(len(row["boxes"]) for row in rows)
        return equal / total if total else 1.0


def quantize(
    file: Path, calibration: Sequence[Sequence[Tensor]], control: ReferencePredictions, max_drop: float
) -> float:
    """Quantize a file of OpenVINO in place; the share of predictions that stay equal.

    Operators that change too many predictions return to float32, one after another.

    Args:
        file: .xml, in float32.
        calibration: the inputs of each call, for the ranges of values.
        control: the predictions of the model on other inputs.
        max_drop: the largest share of other predictions, in [0, 1].

    Raises:
        ValueError: if more predictions change.
    """
    import nncf
    import openvino

    def arrays(batch: Sequence[Tensor]) -> dict[int, Any]:
        return {i: x.contiguous().numpy() for i, x in enumerate(batch)}

    def share(program: Any, _: Iterable[Any]) -> tuple[float, None]:
        count = len(program.outputs)

        def run(inputs: Sequence[Tensor]) -> Sequence[Tensor]:
            outputs = program(arrays(inputs))
            return [torch.from_numpy(outputs[i].copy()) for i in range(count)]

        return control.share(run), None

    model = openvino.Core().read_model(file)
    facts = {name: model.get_rt_info([KEY, name]) for name in model.get_rt_info([KEY]).value}
    nncf.set_log_level(logging.ERROR)
    with held("NNCF cannot quantize this model"), redirect_stdout(io.StringIO()):  # it draws its progress
        done = nncf.quantize_with_accuracy_control(
            model,
            nncf.Dataset(list(calibration), arrays),
            nncf.Dataset(list(control.batches), arrays),
            share,
            max_drop=max_drop,
            drop_type=nncf.DropType.ABSOLUTE,
            subset_size=len(calibration),
            model_type=nncf.ModelType.TRANSFORMER,
            ignored_scope=nncf.IgnoredScope(types=list(WHOLE), validate=False),
        )
    for name, value in facts.items():
        done.set_rt_info(value.astype(str), [KEY, name])
    equal = share(openvino.Core().compile_model(done, "CPU", {"INFERENCE_PRECISION_HINT": "f32"}), ())[0]
    if equal < 1 - max_drop:
        raise ValueError(
            f"int8 changes {100 * (1 - equal):.1f} % of the predictions; at most {100 * max_drop:g} % are allowed"
            " (--max-drop)."
        )
    draft = file.with_name(
        f"int8.{file.name}"
    )  # the weights of the model are mapped from the file: not in place
    openvino.save_model(done, draft, compress_to_fp16=False)
    for ending in (".bin", ".xml"):
        os.replace(draft.with_suffix(ending), file.with_suffix(ending))
    return equal


def apply(
    file: Path,
    model: Portable,
    images: Images,
    sides: tuple[int, int],
    *,
    max_drop: float,
    slower: Literal["refuse", "accept"],
) -> Quantized:
    """Quantize a file of OpenVINO in place; what was measured.

    Args:
        file: .xml, in float32.
        model: what the file was written from, on the CPU, in evaluation mode.
        images: to calibrate with; every third one is left for the control.
        sides: height and width that they are prepared for.
        max_drop: the largest share of predictions that may change, in [0, 1].
        slower: whether a file that is not faster than bfloat16 here is refused.

    Raises:
        ValueError: if more predictions change, or the file is refused.
    """
    batches = batches_of(model, images, sides)
    with tempfile.TemporaryDirectory(dir=file.parent) as folder:
        plain = Path(folder) / file.name
        for ending in (".xml", ".bin"):
            shutil.copy(file.with_suffix(ending), plain.with_suffix(ending))
        calibration = [batch for i, batch in enumerate(batches) if i % HELD_OUT] or batches
        control = held_out(model, batches)
        equal = quantize(file, calibration, control, max_drop)
        speeds = timed(plain, file, batches[0])
    why = refusal(speeds)
    if why and slower == "refuse":
        raise ValueError(
            f"{why}. --accept-slower, in Python slower='accept', writes it. Nothing was written."
        )
    return Quantized(
        source=images.source,
        images=images.text,
        digest=images.digest,
        held_out=len(control.batches),
        equal=equal,
        max_drop=max_drop,
        timed=speeds,
    )


def batches_of(model: Portable, images: Images, sides: tuple[int, int]) -> list[tuple[Tensor, ...]]:
    """The inputs of a call for each image, prepared at `sides`, height and width."""
    prepared = [prepare(model, image)(*sides)[None] for image in images.pictures]
    return [(x, *model.other_inputs(x)) for x in prepared]


def held_out(model: Portable, batches: Sequence[Sequence[Tensor]]) -> ReferencePredictions:
    """The predictions of a model for the images that are left out of calibration."""
    return ReferencePredictions(model, batches[::HELD_OUT])


def timed(plain: Path, quantized: Path, inputs: Sequence[Tensor]) -> Timed:
    """The speed of a file in float32 and in bfloat16, and of its quantized form, in turns: medians."""
    forms = {"float32": (plain, "f32"), "bfloat16": (plain, "bf16"), "int8": (quantized, "f32")}
    shapes = {i: list(x.shape) for i, x in enumerate(inputs)}
    programs = {name: _compiled(file, hint, shapes) for name, (file, hint) in forms.items()}
    arrays = {i: x.contiguous().numpy() for i, x in enumerate(inputs)}
    taken: Mapping[str, list[float]] = {name: [] for name in programs}
    for program in programs.values():
        program(arrays)
    start = time.perf_counter()
    while time.perf_counter() - start < len(programs) * SECONDS or len(taken["int8"]) < 5:
        for name, program in programs.items():
            before = time.perf_counter()
            program(arrays)
            taken[name].append(time.perf_counter() - before)
    count = len(inputs[0])
    rates = {name: count / statistics.median(calls) for name, calls in taken.items()}
    return Timed(rates["int8"], rates["bfloat16"], rates["float32"], tuple(inputs[0].shape))


def _compiled(file: Path, precision: str, shapes: dict[int, list[int]]) -> Any:
    import openvino

    model = openvino.Core().read_model(file)
    model.reshape(shapes)

    settings = {
        "INFERENCE_NUM_THREADS": torch.get_num_threads(),
        "INFERENCE_PRECISION_HINT": precision,
        "PERFORMANCE_HINT": "LATENCY",
    }
    return openvino.Core().compile_model(model, "CPU", settings)


def refusal(speeds: Timed) -> str:
    """The reason why a quantized file is of no use on this machine; "" where it is faster."""
    if speeds.int8 > speeds.reference:
        return ""
    name = "bfloat16" if speeds.bfloat16 >= speeds.float32 else "float32"
    height, width = speeds.shape[2:]
    return (
        f"int8 is not faster than {name} on this machine: {speeds.int8:.3g} and {speeds.reference:.3g} images/s at"
        f" {height}x{width}, batch {speeds.shape[0]}"
    )
