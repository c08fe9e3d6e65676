"""A model -> the same model in the form that is fastest here."""

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from threading import Lock
from time import perf_counter
from typing import Generic, Literal, TypeVar, cast

import torch
from torch import Tensor, nn

from tetravit import runtimes
from tetravit.models.portable import Portable, check_model
from tetravit.registry import pick
from tetravit.runtimes.base import CannotRun, Graphs, Outputs, Runner, Way, over_same_tensors, quiet
from tetravit.runtimes.parts.compare import compare
from tetravit.runtimes.parts.keep import Keeper, KeptPrograms
from tetravit.runtimes.parts.load import Load, cores, free_threads
from tetravit.runtimes.parts.processor import bfloat16_missing
from tetravit.runtimes.parts.tune import (
    ERROR_16,
    Candidate,
    Choice,
    Tuner,
    check,
    difference,
    in_likely_order,
    label,
    run_plain,
    unfit,
)
from tetravit.runtimes.parts.watch import Watch

Model = TypeVar("Model", bound=Portable)

DENSE_SIDE = 512  # pixels: of images where the model has no size of its own


@dataclass(frozen=True)
class Optimized:
    """How an optimised model runs.

    backend, threads: what runs it. parts: number of equal parts of the last batch, which run side by side.
    images_per_s: of each candidate that was measured. left_out: backends that were not measured -> why. dtype: of the
    computation. difference: of the outputs from those in float32, as a share of the largest; None: not measured.
    cached: whether its program was read from the cache folder. not_kept: why it is not in there; "" if it is.
    """

    backend: str
    images_per_s: Mapping[str, float] = field(default_factory=dict)
    left_out: Mapping[str, str] = field(default_factory=dict)
    threads: int = 0
    parts: int = 1
    dtype: str = "float32"
    difference: float | None = None
    cached: bool = False
    not_kept: str = ""

    @property
    def way(self) -> str:
        """Backend, threads, parts and, where it is not float32, the type: "openvino, 2 threads, bfloat16"."""
        words = (
            label(Candidate(self.backend, Way(self.threads)), self.parts) if self.threads else self.backend
        )
        return words if self.dtype == "float32" else f"{words}, {self.dtype}"

    def __str__(self) -> str:
        rates = sorted(self.images_per_s.items(), key=lambda item: -item[1])
        tried = ", ".join(f"{name} {rate:.3g}" for name, rate in rates)
        notes = [f"{self.way}{f' (images/s: {tried})' if tried else ''}"]
        if self.difference is not None:
            notes.append(
                f"outputs within {self.difference:.1e} of those in float32, as a share of the largest"
            )
        notes += [f"without {name}: {why}" for name, why in self.left_out.items()]
        notes += ["read from the cache"] if self.cached else []
        notes += [f"not kept for the next start: {self.not_kept}"] if self.not_kept else []
        return "; ".join(notes)


def optimize(
    model: Model,
    dtype: torch.dtype | Literal["auto"] | None = None,
    backend: str = "auto",
    example: Tensor | None = None,
) -> Model:
    """A copy of `model` for inference, with the same outputs, that runs as fast as this machine can.

    It takes images of any batch and size, as the model does; the first call with a new size may take longer. In a
    detector, backbone and adapter are replaced and the rest is unchanged. The copy has no gradients.
    `copy.optimized` describes how it runs. Programs are kept in the cache folder (`tetravit cache list`), so that the
    same weights start in a second the next time. On processors the backends are compared again when calls become
    clearly slower or faster, or when other processes use more or fewer cores.

    Args:
        model: a trained classifier, segmenter, detector or backbone, on its device.
        dtype: what to compute in; None: the type of the weights; "auto": bfloat16 if the processor has
            instructions for it and is clearly faster with it than with float32; `copy.optimized` holds the difference
            of the outputs. Outputs are float32.
        backend: "eager", "compile", "onnxruntime", "openvino"; "auto": the fastest of those that are
            installed, by a short measurement.
        example: images (B, C, Hi, Wi) like those of the application, for the measurement; None: one image of the
            model's usual size.

    Raises:
        ValueError: if `model` is none of those, or the backend or type is unknown, not available here or unable to
            run the model.
    """
    check_model(model, "optimize")
    parameter = next(model.parameters())
    device = parameter.device
    if isinstance(dtype, str) and dtype != "auto":
        raise ValueError(f"dtype takes a torch.dtype, 'auto' or None; got {dtype!r}.")
    if example is None:
        noise = torch.Generator().manual_seed(0)
        example = torch.randn(1, model.backbone.in_chans, *_usual_size(model), generator=noise)
    example = example.to(device)
    if backend != "auto":
        row = pick(runtimes.BACKENDS, backend, "backend")
        if why := unfit(row, device):
            raise ValueError(f"The backend {backend!r} is not available: {why}.")
        names, left_out = [backend], {}
    else:
        left_out = {name: why for name, row in runtimes.BACKENDS.items() if (why := unfit(row, device))}
        names = in_likely_order(name for name in runtimes.BACKENDS if name not in left_out)
        quick = [name for name in names if not runtimes.BACKENDS[name].slow]
        names = names if device.type != "cpu" or quick == ["eager"] else quick
    keeper = Keeper(model, device, tuple(example.shape[2:]))
    optimizer = _Optimizer(model, example, backend, names, keeper)
    try:
        tuned = optimizer.auto() if dtype == "auto" else optimizer.of(dtype or parameter.dtype)
    except CannotRun as error:
        raise ValueError(f"The backend {backend!r} cannot run this model: {error}.") from error
    return tuned.running({**left_out, **optimizer.left_out})


class _Optimizer(Generic[Model]):
    """Optimises one model in one or several types."""

    def __init__(
        self, model: Model, example: Tensor, backend: str, names: Sequence[str], keeper: Keeper
    ) -> None:
        self.model, self.example, self.names, self.keeper = model, example, names, keeper
        self.left_out: dict[str, str] = {}
        self._backend, self._load = backend, Load()
        # Images of a classifier usually have one size.
        self._one_size = model.accelerated == "forward" and model.usual_sides(0) != (0, 0)

    def of(self, dtype: torch.dtype) -> "_Tuned[Model]":
        """The model in this type, run by the kept choice, or by the fastest candidate of a comparison.

        Raises:
            CannotRun: if no backend can run it.
        """
        fast = _copy(self.model, dtype)
        module, example = _module(fast), self.example.to(dtype)
        graphs = self._graphs(module, dtype)
        tuner = Tuner(module, graphs, self.names, self._load)
        others = self._load.others()
        case = self._case(dtype, others)
        choice = self.keeper.choice(case, tuner.names[0]) or self._choice_of_other_load(dtype, others, tuner)
        if choice is None or not tuner.can_run(choice.candidate, example):
            choice, cached = tuner.choose(example), False
        else:
            cached = not self.keeper.damaged
        if not cached:
            self.keeper.keep(case, choice)
        restored = tuner.restored == choice.candidate
        if not restored and self.keeper.can_keep:
            tuner.keep_program(choice.candidate, example)
        graphs.model = module  # those of further sizes need no other copy
        return _Tuned(fast, tuner, choice, example, cached, self.keeper.why_not, restored=restored)

    def auto(self) -> "_Tuned[Model]":
        """The model in bfloat16 where that is clearly faster, else in the type of its weights."""
        own, fast = next(self.model.parameters()).dtype, torch.bfloat16
        missing = bfloat16_missing() if self.example.device.type == "cpu" else ""
        if own != torch.float32 or missing:
            self.left_out |= {"bfloat16": missing} if missing else {}
            return self.of(own)
        case = self._case("auto", self._load.others())
        known = self.keeper.type_of(case)
        if known is not None:
            return replace(self.of(fast if known[0] == "bfloat16" else own), difference=known[1])
        exact, rough = self.of(own), self.of(fast)
        apart = difference(rough.call(), exact.call())
        calls: dict[torch.dtype, Callable[[], object]] = {own: exact.call, fast: rough.call}
        taken = compare(calls, own).best if apart <= ERROR_16 else own
        tuned = replace(rough, difference=apart) if taken == fast else exact
        self.keeper.keep_type(case, name_of(taken), tuned.difference)
        return tuned

    def _graphs(self, module: nn.Module, dtype: torch.dtype) -> Graphs:
        """Float32 graphs of the original weights."""
        if dtype != torch.float32:
            module = _module(_copy(self.model, torch.float32))
        keeper = self.keeper
        return Graphs(
            module, one_size=self._one_size, file=keeper.file, keep=keeper.add, programs=KeptPrograms(keeper)
        )

    def _choice_of_other_load(self, dtype: torch.dtype, others: float, tuner: Tuner) -> Choice | None:
        """A choice kept under another load, if under this load its backend has that one setting."""
        batch, threads = len(self.example), torch.get_num_threads()
        for busy in range(len(cores()) + 1):
            choice = self.keeper.choice(self._case(dtype, busy), tuner.names[0])
            row = runtimes.BACKENDS.get(choice.candidate.backend) if choice else None
            if choice is None or row is None:
                continue
            ways = [choice.candidate.way, *row.ways(batch, threads, free_threads(threads, others))]
            if len({(way.threads, row.parts(batch, way)) for way in ways}) == 1:
                return choice
        return None

    def _case(self, dtype: torch.dtype | Literal["auto"], others: float) -> str:
        """The conditions of a choice, besides model and machine: a key of the kept choices."""
        busy, threads = round(others), torch.get_num_threads()
        return f"{name_of(dtype)}, batch {len(self.example)}, {threads} threads, {busy} busy, {self._backend}"


@dataclass(frozen=True)
class _Tuned(Generic[Model]):
    """A copy of a model, and the choice of what runs it. restored: its compiled program was read from the cache."""

    fast: Model
    tuner: Tuner
    choice: Choice
    example: Tensor
    cached: bool
    not_kept: str
    difference: float | None = None
    restored: bool = False

    def call(self) -> Outputs:
        return self.tuner.runner(self.choice.candidate, self.example)(self.example)

    def running(self, left_out: Mapping[str, str]) -> Model:
        """The copy, run by the chosen candidate."""
        choice, count = self.choice, len(self.example)
        how = Optimized(
            choice.candidate.backend,
            {name: count / seconds for name, seconds in choice.seconds.items()},
            {**left_out, **self.tuner.left_out},
            threads=choice.candidate.way.threads if self.example.device.type == "cpu" else 0,
            parts=choice.parts,
            dtype=name_of(self.example.dtype),
            difference=self.difference,
            cached=self.cached,
            not_kept=self.not_kept,
        )
        running = _Running(self.fast, self.tuner, choice, self.example, how, has_run=not self.restored)
        # A function, so that copies of the model share it.
        setattr(self.fast, self.fast.accelerated, lambda images: running(images))
        return self.fast


class _Running:
    """Runs images on the chosen backend, except for sizes outside its range, which run on the plain model.

    The first outputs of a backend at each size are compared with those of the plain model. If they differ, or the
    backend fails, that size runs on the plain model, so that outputs never change. The outputs of a kept program were
    compared before it was kept.

    has_run: whether the runner has run the example.
    """

    def __init__(
        self, fast: Portable, tuner: Tuner, choice: Choice, example: Tensor, how: Optimized, has_run: bool
    ) -> None:
        self._fast, self._plain, self._tuner = fast, getattr(fast, fast.accelerated), tuner
        self._dtype, self._candidate = example.dtype, choice.candidate
        self._has_run = has_run
        self._publish(how)
        self._runner = tuner.runner(choice.candidate, example)
        # The tuner has compared the outputs for the example.
        self._trusted = {(choice.candidate, tuple(example.shape[2:])): True}
        self._comparing = Lock()
        self._watch: Watch | None = None
        if example.device.type == "cpu":
            self._watch = Watch(tuner.load.others, choice.others)
            if choice.best_s is not None:
                self._watch.expect(tuple(example.shape), choice.best_s)

    def __call__(self, images: Tensor) -> Outputs:
        images, candidate, runner = images.to(self._dtype), self._candidate, self._runner
        if not self._takes(images, candidate, runner):
            outputs = run_plain(self._plain, images)
        else:
            start = perf_counter()
            try:
                outputs = runner(images)
            except Exception:  # any error of a kept program that does not run
                if self._has_run:
                    raise
                self._trusted[candidate, tuple(images.shape[2:])] = False
                outputs = run_plain(self._plain, images)
            else:
                self._has_run = True
                self._record(images, perf_counter() - start)
        return outputs.float() if isinstance(outputs, Tensor) else [x.float() for x in outputs]

    def _takes(self, images: Tensor, candidate: Candidate, runner: Runner) -> bool:
        """Whether the backend accepts images of this size and reproduces the outputs of the plain model."""
        row, size = runtimes.BACKENDS[candidate.backend], tuple(images.shape[2:])
        if not row.smallest <= min(size) <= max(size) <= row.largest:
            return False
        key = candidate, size
        if key not in self._trusted:
            with quiet():
                self._trusted[key] = not row.compared or _agrees(runner, self._plain, images[:1])
        return self._trusted[key]

    def _record(self, images: Tensor, seconds: float) -> None:
        candidate = self._candidate
        parts = runtimes.BACKENDS[candidate.backend].parts(len(images), candidate.way)
        if parts != self._how.parts:
            self._publish(replace(self._how, parts=parts))
        watch = self._watch
        if watch and watch.record(tuple(images.shape), seconds) and self._comparing.acquire(blocking=False):
            try:
                self._compare_again(images, watch)
            finally:
                self._comparing.release()

    def _compare_again(self, images: Tensor, watch: Watch) -> None:
        """Compare the candidates on these images again, and switch to the fastest."""
        try:
            choice = self._tuner.compare_again(self._candidate, images)
            runner = self._tuner.runner(choice.candidate, images)
        except Exception:  # any error of a backend: the present choice stays
            watch.restart(changed=False, others=self._tuner.load.others())
            return
        watch.restart(choice.candidate != self._candidate, choice.others)
        if choice.best_s is not None:
            watch.expect(tuple(images.shape), choice.best_s)
        self._runner, self._candidate = runner, choice.candidate
        self._publish(
            replace(
                self._how,
                backend=choice.candidate.backend,
                threads=choice.candidate.way.threads,
                parts=choice.parts,
                images_per_s={name: len(images) / seconds for name, seconds in choice.seconds.items()},
            )
        )

    def _publish(self, how: Optimized) -> None:
        self._how = how
        self._fast.optimized = how  # type: ignore[assignment]


class _Part(nn.Module):
    """The replaced method of a model, as a module."""

    def __init__(self, model: Portable) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: Tensor) -> Outputs:
        return getattr(self.model, self.model.accelerated)(images)


def name_of(dtype: torch.dtype | str) -> str:
    return str(dtype).removeprefix("torch.")


def _copy(model: Model, dtype: torch.dtype) -> Model:
    """The copy that `optimize` returns, its replaced part in `dtype`."""
    fast = copy.deepcopy(model).eval().requires_grad_(False)
    for part in fast.accelerated_parts():
        part.to(dtype)
    return fast


def _module(model: Portable) -> nn.Module:
    """The module that backends run, images to tensors; it shares the tensors of `model`."""
    part = over_same_tensors(model)
    return part if model.accelerated == "forward" else _Part(cast(Portable, part))


def _agrees(runner: Runner, plain: Runner, images: Tensor) -> bool:
    try:
        outputs = runner(images)
    except Exception:  # any error of the backend; the plain model reports faulty images
        return False
    try:
        check(outputs, run_plain(plain, images))
    except CannotRun:
        return False
    return True


def _usual_size(model: Portable) -> tuple[int, int]:
    return model.usual_sides(DENSE_SIDE)
