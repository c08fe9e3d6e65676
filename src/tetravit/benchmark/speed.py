"""Speed of models on this machine, and its share of the peak of the machine.

Models are measured in turns, so that a slow or hot machine is slow for all of them; the median counts. The peak is
the rate of large matrix products, measured between the rounds.
"""

import datetime
import platform
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import nn
from torch.nn import functional as F

from tetravit.benchmark.energy import joules
from tetravit.benchmark.flops import count_inference_macs
from tetravit.benchmark.memory import peak_mib
from tetravit.models import create_model

Mode = Literal["predict", "train"]
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
PRODUCT_SIDE = {"cpu": 1024, "cuda": 8192}  # of the square matrices whose product measures the peak


@dataclass(frozen=True)
class Row:
    """One measured row. images_per_s: median over the rounds; spread: interquartile range over the median.

    share: of the machine's matrix-product rate, in 0..1, counting the multiply-adds of the model (three times
    those of a forward pass where it trains). product_tflops: that rate, two operations per multiply-add.
    peak_mib: memory taken above what was in use before the first call. joules_per_image: of all processors, or of
    the GPU, at the power that the rounds of the model took; None: not available on this system.
    """

    model: str
    mode: Mode
    params: int
    macs: int
    size: int
    batch: int
    dtype: str
    device: str
    threads: int
    compiled: bool
    images_per_s: float
    p90_ms: float
    spread: float
    rounds: int
    peak_mib: float
    product_tflops: float
    share: float
    torch: str
    date: str
    joules_per_image: float | None = None


def measure(
    names: Sequence[str],
    *,
    size: int = 224,
    batch: int = 8,
    mode: Mode = "predict",
    dtype: str = "float32",
    device: torch.device | str = "cpu",
    compiled: bool = False,
    rounds: int = 10,
    seconds: float = 0.5,
    on_round: Callable[[int], object] = lambda count: None,
) -> list[Row]:
    """Measure models by name, with random weights and images.

    Args:
        names: models; each is measured in every round.
        size: image side in pixels.
        batch: images per call.
        mode: `predict`: forward without gradients; `train`: forward and backward.
        dtype: float32, bfloat16 or float16, of weights and images.
        device: where.
        compiled: through torch.compile.
        rounds: how often each model is measured; the median counts.
        seconds: how long a round of one model takes at least; at least one call.
        on_round: called with 1 after each round.

    Raises:
        ValueError: for an unknown model or type, or counts below 1.
    """
    for what, value in (("batch", batch), ("rounds", rounds)):
        if value < 1:
            raise ValueError(f"{what} is 1 or more; got {value}.")
    if dtype not in DTYPES:
        raise ValueError(f"dtype takes one of {', '.join(DTYPES)}; got {dtype!r}.")
    device = torch.device(device)
    calls, facts = [], []
    for name in names:
        model = create_model(name, image_size=size)
        images = torch.randn(batch, 3, size, size)
        facts.append(
            (sum(p.numel() for p in model.parameters()), count_inference_macs(model.eval(), images[:1]))
        )
        call = _call(model.to(device, DTYPES[dtype]), images.to(device, DTYPES[dtype]), mode, compiled)
        calls.append((call, peak_mib(call, device)))
    product = _product(device, DTYPES[dtype])
    times: list[list[float]] = [[] for _ in calls]
    watts: list[list[float]] = [[] for _ in calls]
    used = joules(device)
    rates: list[float] = []
    for call in (product, *(call for call, _ in calls)):
        _time(call, device, seconds / 5)  # warm-up
    for _ in range(rounds):
        side = PRODUCT_SIDE.get(device.type, 1024)
        rates.append(2 * side**3 / statistics.median(_time(product, device, seconds / 5)))
        for (call, _), taken, power in zip(calls, times, watts, strict=True):
            start, before = time.perf_counter(), used() if used else 0.0
            taken.append(statistics.median(_time(call, device, seconds)))
            if used:
                power.append((used() - before) / (time.perf_counter() - start))
        on_round(1)
    rate = statistics.median(rates)
    work = 3 if mode == "train" else 1
    rows = []
    measured = zip(names, facts, calls, times, watts, strict=True)
    for name, (params, macs), (_, peak), taken, power in measured:
        middle = statistics.median(taken)
        rows.append(
            Row(
                model=name,
                mode=mode,
                params=params,
                macs=macs,
                size=size,
                batch=batch,
                dtype=dtype,
                device=device_name(device),
                threads=torch.get_num_threads() if device.type == "cpu" else 0,
                compiled=compiled,
                images_per_s=round(batch / middle, 2),
                p90_ms=round(1000 * _quantile(taken, 0.9), 2),
                spread=round((_quantile(taken, 0.75) - _quantile(taken, 0.25)) / middle, 4),
                rounds=rounds,
                peak_mib=round(peak, 1),
                product_tflops=round(rate / 1e12, 4),
                share=round(2 * macs * work * batch / middle / rate, 4),
                torch=torch.__version__,
                date=datetime.date.today().isoformat(),
                joules_per_image=round(statistics.median(power) * middle / batch, 4) if power else None,
            )
        )
    return rows


def device_name(device: torch.device) -> str:
    """The processor or card by its maker's name."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    try:
        with open("/proc/cpuinfo") as file:
            lines = [line.partition(":")[2].strip() for line in file if line.startswith("model name")]
        return lines[0] if lines else platform.machine()
    except OSError:
        return platform.processor() or platform.machine()


def _call(model: nn.Module, images: torch.Tensor, mode: Mode, compiled: bool) -> Callable[[], object]:
    if compiled:
        model.compile()
    if mode == "predict":
        model.eval()

        def predict() -> None:
            with torch.inference_mode():
                model(images)

        return predict

    model.train()
    labels = torch.zeros(len(images), dtype=torch.int64, device=images.device)

    def train() -> None:
        F.cross_entropy(model(images).float(), labels).backward()
        model.zero_grad(set_to_none=True)  # so that the peak of a call counts its gradients

    return train


def _product(device: torch.device, dtype: torch.dtype) -> Callable[[], object]:
    side = PRODUCT_SIDE.get(device.type, 1024)
    a, b = (torch.randn(side, side, device=device).to(dtype) for _ in range(2))
    return lambda: torch.mm(a, b)


def product_flops(device: torch.device | str, seconds: float = 0.2) -> float:
    """Operations a second of a large matrix product in float32, two per multiply-add: the peak of a machine."""
    device = torch.device(device)
    product = _product(device, torch.float32)
    _time(product, device, seconds / 5)  # warm-up
    return 2 * PRODUCT_SIDE.get(device.type, 1024) ** 3 / statistics.median(_time(product, device, seconds))


def _time(call: Callable[[], object], device: torch.device, seconds: float) -> list[float]:
    """Seconds of each of as many calls as fit into `seconds`, at least one."""
    taken: list[float] = []
    while not taken or sum(taken) < seconds:
        start = time.perf_counter()
        call()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        taken.append(time.perf_counter() - start)
    return taken


def _quantile(values: Sequence[float], share: float) -> float:
    return float(torch.tensor(values, dtype=torch.float64).quantile(share))
