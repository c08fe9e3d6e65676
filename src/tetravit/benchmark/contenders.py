"""Ways of running a model that are compared, each in a process of its own.

Our model: `plain`, eager; `plain-compiled`, by torch.compile; `optimized`, by `tetravit.optimize`; `torch`, by
`tetravit.optimize` restricted to torch. timm's model of the same name: `timm`, eager; `compile`, by torch.compile;
`onnxruntime` and `openvino`, by those runtimes.
"""

import time
import traceback
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from multiprocessing.connection import Connection
from typing import Literal, TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tetravit.benchmark.memory import peaks
from tetravit.models import Classifier, create_model
from tetravit.runtimes import optimize
from tetravit.runtimes.base import needs, quiet
from tetravit.runtimes.parts.load import Load

Mode = Literal["predict", "train", "step"]  # forward; and backward; and an update by AdamW
Call = Callable[[], object]
Model = TypeVar("Model", bound=nn.Module)
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
OPENVINO_HINTS = {"float32": "f32", "bfloat16": "bf16"}


@dataclass(frozen=True)
class Task:
    """The work of a contender in a round: calls on images of one shape."""

    model: str
    contender: str
    size: int
    batch: int
    dtype: str
    mode: Mode
    device: str
    threads: int


@dataclass(frozen=True)
class Ready:
    """A contender after its first calls.

    peak_mib: memory of a call above that in use before it. process_mib: memory of its whole process during the call,
    libraries, weights and programs included. build_s: seconds until the end of the first call.
    """

    peak_mib: float
    process_mib: float
    build_s: float


@dataclass(frozen=True)
class Round:
    """times: seconds of each call of a round. others: cores that other processes used. how: backend and threads."""

    times: list[float]
    others: float
    how: str


def timm_name(name: str) -> str:
    """timm's name of a model of ours.

    Raises:
        ValueError: if timm is missing or has no such model.
    """
    why = needs("timm", "timm")
    if why:
        raise ValueError(f"timm cannot be measured: {why}.")
    import timm

    for theirs in (name, f"{name}_224", f"{name}_patch16_224"):
        if timm.is_model(theirs):
            return theirs
    raise ValueError(f"timm has no model {name!r}.")


def _timm(task: Task) -> nn.Module:
    import timm

    given = {"img_size": task.size} if task.model.startswith(("deit", "convit")) else {}
    return _as_trained(timm.create_model(timm_name(task.model), **given))


def _ours(task: Task) -> Classifier:
    return _as_trained(create_model(task.model, image_size=task.size))


def _as_trained(model: Model) -> Model:
    """The model with random norms, biases and layer scales: compilers would remove those of a new model, which are
    identities."""
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.numel() == max(parameter.shape, default=1):
                parameter.add_(torch.randn_like(parameter), alpha=NOISE)
    return model


def _plain(task: Task, images: Tensor) -> Call:
    return _stepping(_ours(task), task, images)


def _optimized(task: Task, images: Tensor) -> Call:
    model = _ours(task).eval().to(task.device)
    return partial(optimize(model, DTYPES[task.dtype], example=images), images)


def _torch_alone(task: Task, images: Tensor) -> Call:
    """The faster of the backends of torch itself."""
    model = _ours(task).eval().to(task.device)
    calls: list[Call] = []
    for backend in ("eager", "compile"):
        calls.append(partial(optimize(model, DTYPES[task.dtype], backend, images), images))
        calls[-1]()  # compiles
    return min(calls, key=lambda call: min(_times(call, task.device, CHOICE_S)))


def _plain_compiled(task: Task, images: Tensor) -> Call:
    model = _ours(task)
    model.compile()
    return _stepping(model, task, images)


def _timm_eager(task: Task, images: Tensor) -> Call:
    return _stepping(_timm(task), task, images)


def _timm_compiled(task: Task, images: Tensor) -> Call:
    model = _timm(task)
    model.compile()
    return _stepping(model, task, images)


def _timm_onnxruntime(task: Task, images: Tensor) -> Call:
    import onnxruntime

    program = torch.export.export(_timm(task).eval(), (images,))
    exported = torch.onnx.export(program, dynamo=True, verbose=False)
    assert exported is not None
    graph = exported.model_proto.SerializeToString()
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = task.threads
    session = onnxruntime.InferenceSession(graph, options, providers=["CPUExecutionProvider"])
    feed = {session.get_inputs()[0].name: images.numpy()}
    return lambda: session.run(None, feed)


def _timm_openvino(task: Task, images: Tensor) -> Call:
    if task.dtype not in OPENVINO_HINTS:
        raise ValueError(f"openvino computes in one of {', '.join(OPENVINO_HINTS)}; got {task.dtype!r}.")
    import openvino

    program = torch.export.export(_timm(task).eval(), (images.float(),))
    settings = {
        "INFERENCE_NUM_THREADS": task.threads,
        "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_PRECISION_HINT": OPENVINO_HINTS[task.dtype],
    }
    compiled = openvino.Core().compile_model(openvino.convert_model(program), "CPU", settings)
    request, feed = compiled.create_infer_request(), {0: images.float().numpy()}
    return lambda: request.infer(feed, share_inputs=True)


CONTENDERS: dict[str, Callable[[Task, Tensor], Call]] = {
    "plain": _plain,
    "plain-compiled": _plain_compiled,
    "optimized": _optimized,
    "torch": _torch_alone,
    "timm": _timm_eager,
    "compile": _timm_compiled,
    "onnxruntime": _timm_onnxruntime,
    "openvino": _timm_openvino,
}
OURS = ("plain", "plain-compiled", "optimized", "torch")
TRAINING = ("plain", "plain-compiled", "timm", "compile")
KEPT = ("optimized",)  # contenders with programs on disk: in use, another process has built them
RUN_BY = {
    "plain": "eager",
    "timm": "eager",
    "plain-compiled": "compile",
}  # other contenders are run by the runtime of their name
NOISE = 0.05  # deviation of norms, biases and layer scales
CHOICE_S = 1.0  # measuring time of each backend of torch


def serve(task: Task, line: Connection) -> None:
    """The process of a contender: build, report readiness, then time its calls for each number of seconds.

    The first reply is a `Ready`, or an error text; each further one a `Round`.
    """
    try:
        images = _images(task)
        with torch.no_grad() if task.mode == "predict" else torch.enable_grad():
            start = time.perf_counter()
            with quiet():
                call = CONTENDERS[task.contender](task, images)
                call()
            built = time.perf_counter() - start
            memory = peaks(call, torch.device(task.device))
            _release(task.device)
            line.send(Ready(memory.call, memory.process, built))
            while (seconds := line.recv()) is not None:
                _times(call, task.device, 0)  # warm-up: other contenders have replaced the caches
                load = Load()
                times = _times(call, task.device, seconds)
                line.send(Round(times, load.others(), _how(call, task)))
                _release(task.device)
    except (BrokenPipeError, ConnectionResetError, EOFError):
        pass  # the parent has ended
    except Exception as error:
        lines = str(error).strip().splitlines() or [traceback.format_exc(limit=1)]
        line.send(f"{type(error).__name__}: {lines[0][:200]}")


def _images(task: Task) -> Tensor:
    """The images of all calls; sets the threads and the seed of this process."""
    torch.set_num_threads(task.threads)
    torch.manual_seed(0)
    dtype = DTYPES[task.dtype] if task.contender in OURS else torch.float32
    return torch.randn(task.batch, 3, task.size, task.size, device=task.device, dtype=dtype)


def build(task: Task) -> None:
    """Build a contender so that its program is kept; the measuring process reports any error."""
    with suppress(Exception), quiet(), torch.no_grad():
        CONTENDERS[task.contender](task, _images(task))


def _how(call: Call, task: Task) -> str:
    """Backend, threads and parts of a contender."""
    optimized = getattr(getattr(call, "func", None), "optimized", None)
    if optimized is not None:
        return str(optimized.way)
    name = RUN_BY.get(task.contender, task.contender)
    return f"{name}, {task.threads} thread{'s' if task.threads > 1 else ''}" if task.device == "cpu" else name


def _stepping(model: nn.Module, task: Task, images: Tensor) -> Call:
    """One call in `task.mode`. In lower precision timm's models run under autocast, which is usual for them."""
    dtype, kind = DTYPES[task.dtype], torch.device(task.device).type
    model = model.to(task.device).train(task.mode != "predict")
    ours = task.contender in OURS and task.mode == "predict"
    if ours:
        model = model.to(dtype)
    mixed = dtype != torch.float32 and not ours
    images = images if ours else images.float()
    labels = torch.zeros(len(images), dtype=torch.int64, device=images.device)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5, fused=True) if task.mode == "step" else None

    def step() -> None:
        with torch.autocast(kind, dtype, enabled=mixed):
            logits = model(images)
        if task.mode != "predict":
            F.cross_entropy(logits.float(), labels).backward()
            if optimizer is not None:
                optimizer.step()
            model.zero_grad(set_to_none=True)

    return step


def _release(device: str) -> None:
    """Free the memory of a GPU."""
    if device.startswith("cuda"):
        torch.cuda.empty_cache()


def _times(call: Call, device: str, seconds: float) -> list[float]:
    taken: list[float] = []
    while not taken or sum(taken) < seconds:
        start = time.perf_counter()
        call()
        if device.startswith("cuda"):
            torch.cuda.synchronize(device)
        taken.append(time.perf_counter() - start)
    return taken
