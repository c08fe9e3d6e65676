"""A model -> the same model in the form that is fastest here."""

import copy
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TypeVar, cast

import torch
from torch import Tensor, nn

from tetravit import runtimes
from tetravit.models.portable import Portable, check_model
from tetravit.registry import pick
from tetravit.runtimes.base import (
    Backend,
    CannotRun,
    Outputs,
    Runner,
    Source,
    first_line,
    over_same_tensors,
    quiet,
)

Model = TypeVar("Model", bound=Portable)

ERROR = 2e-5  # of float32 outputs, as a share of the largest
DENSE_SIDE = 512  # pixels: of images where the model has no size of its own
SECONDS = 0.5  # that `auto` measures each backend


@dataclass(frozen=True)
class Optimized:
    """How a model runs. images_per_s: of each backend that was tried. left_out: those that could not be, and why."""

    backend: str
    images_per_s: Mapping[str, float] = field(default_factory=dict)
    left_out: Mapping[str, str] = field(default_factory=dict)

    def __str__(self) -> str:
        rates = sorted(self.images_per_s.items(), key=lambda item: -item[1])
        tried = ", ".join(f"{name} {rate:.3g}" for name, rate in rates)
        missing = "".join(f"; without {name}: {why}" for name, why in self.left_out.items())
        return f"{self.backend}{f' (images/s: {tried})' if tried else ''}{missing}"


def optimize(
    model: Model,
    dtype: torch.dtype | None = None,
    backend: str = "auto",
    example: Tensor | None = None,
) -> Model:
    """A copy of `model` for inference, with the same outputs, that runs as fast as this machine can.

    It takes images of any batch and size, as the model does; the first call with a new size may take longer. Of a
    detector, backbone and adapter are replaced; what follows stays as it is. The copy has no gradients.
    `copy.optimized` says how it runs.

    Args:
        model: a trained classifier, segmenter, detector or backbone, on its device.
        dtype: what to compute in; None: the type of the weights. Outputs are float32.
        backend: "eager", "compile", "onnxruntime", "openvino"; "auto": the fastest of those that are here, by a
            short measurement.
        example: images (B, C, Hi, Wi) like those of the application, for the measurement; None: one of the model's
            usual size.

    Raises:
        ValueError: for something that is no model, an unknown backend, one that is not available or cannot run the
            model.
    """
    check_model(model, "optimize")
    parameter = next(model.parameters())
    device, dtype = parameter.device, dtype or parameter.dtype
    if example is None:
        example = torch.zeros(1, model.backbone.in_chans, *_usual_size(model), device=device)
    example = example.to(device, dtype)
    if backend != "auto":
        row = pick(runtimes.BACKENDS, backend, "backend")
        why = _unfit(row, device)
        if why:
            raise ValueError(f"The backend {backend!r} is not available: {why}.")
        fast = _copy(model, dtype)
        try:
            with quiet():
                runner, _ = _first(row, Source(_graph(fast), example))
            return _with(fast, row, runner, Optimized(backend), dtype)
        except CannotRun as error:
            raise ValueError(f"The backend {backend!r} cannot run this model: {error}.") from error
    left_out = {name: why for name, row in runtimes.BACKENDS.items() if (why := _unfit(row, device))}
    able = [name for name in runtimes.BACKENDS if name not in left_out]
    quick = [name for name in able if not runtimes.BACKENDS[name].slow]
    tried = able if device.type != "cpu" or quick == ["eager"] else quick
    fast = _copy(model, dtype)
    source = Source(_graph(fast), example)
    plain = _run(source.model, example)
    rates: dict[str, float] = {}
    best: tuple[str, Runner] | None = None
    for name in tried:
        with quiet():  # a backend that is left out has its line in `left_out`
            try:
                runner, found = _first(runtimes.BACKENDS[name], source)
                _check(found, plain, dtype)
            except CannotRun as error:
                left_out[name] = str(error)
                continue
        rates[name] = _rate(runner, example)
        if best is None or rates[name] > rates[best[0]]:  # a slower one is released
            best = name, runner
    assert best is not None, "the plain model equals itself"
    return _with(fast, runtimes.BACKENDS[best[0]], best[1], Optimized(best[0], rates, left_out), dtype)


class _Part(nn.Module):
    """The method of a model that is replaced, as a module."""

    def __init__(self, model: Portable) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: Tensor) -> Outputs:
        return getattr(self.model, self.model.accelerated)(images)


def _copy(model: Model, dtype: torch.dtype) -> Model:
    """The copy that `optimize` returns, with the part to be replaced in `dtype`."""
    fast = copy.deepcopy(model).eval().requires_grad_(False)
    for part in fast.accelerated_parts():
        part.to(dtype)
    return fast


def _graph(model: Portable) -> nn.Module:
    """The module to run, images to tensors, which shares the tensors of `model`."""
    part = over_same_tensors(model)
    return part if model.accelerated == "forward" else _Part(cast(Portable, part))


def _first(row: Backend, source: Source) -> tuple[Runner, Outputs]:
    """The runner of the model, and its outputs for the example.

    Raises:
        CannotRun: for any error of the backend, whose exceptions are its own.
    """
    try:
        runner = row.build(source)
        return runner, runner(source.example)
    except CannotRun:
        raise
    except Exception as error:
        raise CannotRun(first_line(error)) from error


def _with(fast: Model, row: Backend, runner: Runner, how: Optimized, dtype: torch.dtype) -> Model:
    """Run the images of `fast` through `runner`, except for sizes that the backend does not take.

    The first outputs at each size are compared with those of the plain model. Where they differ, or the backend
    fails, that size runs on the plain model, so that an optimised model never gives other outputs.
    """
    plain = getattr(fast, fast.accelerated)
    trusted: dict[tuple[int, ...], bool] = {}

    def run(images: Tensor) -> Outputs:
        images, size = images.to(dtype), tuple(images.shape[2:])
        fits = row.smallest <= min(size) and max(size) <= row.largest
        if fits and size not in trusted:
            with quiet():
                trusted[size] = not row.compared or _agrees(runner, plain, images[:1], dtype)
        found = runner(images) if fits and trusted[size] else _run(plain, images)
        return found.float() if isinstance(found, Tensor) else [x.float() for x in found]

    setattr(fast, fast.accelerated, run)
    fast.optimized = how  # type: ignore[assignment]
    return fast


def _agrees(runner: Runner, plain: Runner, images: Tensor, dtype: torch.dtype) -> bool:
    try:
        found = runner(images)
    except Exception:  # any error of the backend; the plain model reports faulty images
        return False
    try:
        _check(found, _run(plain, images), dtype)
    except CannotRun:
        return False
    return True


def _unfit(row: Backend, device: torch.device) -> str:
    if device.type not in row.devices:
        return f"it runs on {' or '.join(row.devices)}, not on {device.type}"
    return row.ready()


def _usual_size(model: Portable) -> tuple[int, int]:
    return model.usual_sides(DENSE_SIDE)


def _run(model: Runner, images: Tensor) -> Outputs:
    with torch.inference_mode():
        return model(images)


def _check(found: Outputs, plain: Outputs, dtype: torch.dtype) -> None:
    """Raises: CannotRun if the outputs are not those of the plain model."""
    pairs = [(found, plain)] if isinstance(found, Tensor) else list(zip(found, plain, strict=True))
    for got, wanted in pairs:
        assert isinstance(got, Tensor)
        assert isinstance(wanted, Tensor)
        limit = ERROR if dtype == torch.float32 else 0.1
        error = ((got.float() - wanted.float()).abs().max() / wanted.float().abs().max().clamp(min=1)).item()
        if not error <= limit:
            raise CannotRun(f"its outputs differ by {error:.1e} of the largest, more than {limit:g}")


def _rate(runner: Runner, example: Tensor) -> float:
    """Images per second: the best of several calls within `SECONDS`."""
    best, start = float("inf"), time.perf_counter()
    while time.perf_counter() - start < SECONDS or best == float("inf"):
        before = time.perf_counter()
        found = runner(example)
        if example.device.type == "cuda":
            torch.cuda.synchronize(example.device)
        del found
        best = min(best, time.perf_counter() - before)
    return len(example) / best
