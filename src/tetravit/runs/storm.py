"""Kill and resume a small run repeatedly on the user's disk: no loss, and an unchanged result."""

import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from tetravit.engine.checkpoint import BadCheckpoint, read
from tetravit.weights.fileformat import read as read_weights

RECIPE = (
    "digits", "optim.warmup_steps=5", "model.name=xcit_nano_12_p16", "model.options.depth=1", "model.drop_path=0.1",
    "data.options.fraction=0.2", "data.workers=0", "data.batch_size=16", "data.mix=mixup(0.8)", "run.device=cpu",
    "run.log_steps=5", "run.save_steps=2", "run.evaluate_epochs=0", "optim.ema=0.9",
)  # fmt: skip
APART = 20  # steps between kills
PATIENCE_S = 300.0  # for a resumed run to make progress


@dataclass(frozen=True)
class Storm:
    """Result of the kills. inside: number of kills during a save. lost: maximum number of steps lost by a kill.

    damaged: the newest checkpoint was incomplete. equal: the result is bitwise that of an uninterrupted run.
    """

    kills: int
    inside: int
    lost: int
    damaged: int
    equal: bool

    @property
    def passed(self) -> bool:
        return self.equal and not self.damaged

    def __str__(self) -> str:
        end = "equal to the bit" if self.equal else "NOT equal"
        return (
            f"{self.kills} kills, {self.inside} of them inside a save: {self.damaged} damaged checkpoints, at most"
            f" {self.lost} steps lost each; the end is {end} to that of an undisturbed run."
        )


def storm(folder: Path, kills: int, say: Callable[[str], object] = lambda text: None, seed: int = 0) -> Storm:
    """Kill a run in `folder` several times (SIGKILL), resume it each time, and compare the result.

    Raises:
        ValueError: if the run makes no progress; its output is in the folder.
    """
    draw, run = random.Random(seed), folder / "killed"
    steps, inside, lost, damaged = APART * (kills + 1), 0, 0, 0
    for kill in range(1, kills + 1):
        life = _start(run, steps)
        _wait(life, lambda target=APART * kill: _newest(run) >= target, folder)  # type: ignore[misc]
        time.sleep(draw.uniform(0, 0.1))
        before = _logged(run)
        os.kill(life.pid, signal.SIGKILL)
        life.wait()
        inside += any((run / "checkpoints").glob(".writing_*"))
        newest = _newest(run)
        lost = max(lost, before - newest)
        try:
            read(run / "checkpoints" / f"step_{newest:06d}")
        except BadCheckpoint as error:
            damaged += 1
            say(str(error))
        say(f"kill {kill} of {kills}: continues after step {newest}")
    for path in (run, folder / "straight"):
        life = _start(path, steps)
        _wait(life, lambda: life.poll() == 0, folder)  # noqa: B023 - called before the next life begins
    logs, weights = zip(
        *(
            ((path / "metrics.jsonl").read_bytes(), read_weights(path / "last.safetensors")[0])
            for path in (run, folder / "straight")
        ),
        strict=True,
    )
    equal = logs[0] == logs[1] and all(bool((v == weights[1][k]).all()) for k, v in weights[0].items())
    return Storm(kills, inside, lost, damaged, equal)


def _start(run: Path, steps: int) -> subprocess.Popen[bytes]:
    command = [
        sys.executable,
        "-m",
        "tetravit",
        "train",
        *RECIPE,
        f"steps={steps}",
        "--into",
        str(run),
        "--continue",
    ]
    run.parent.mkdir(parents=True, exist_ok=True)
    with open(run.parent / f"{run.name}.log", "ab") as log:
        return subprocess.Popen(command, stdout=log, stderr=log, env={**os.environ, "OMP_NUM_THREADS": "1"})


def _wait(life: subprocess.Popen[bytes], done: Callable[[], bool], folder: Path) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not done():
        if life.poll() not in (None, 0) or time.monotonic() > deadline:
            life.kill()
            raise ValueError(f"The run of the self-test makes no progress; its output is in {folder}.")
        time.sleep(0.005)


def _newest(run: Path) -> int:
    return max((int(path.name[5:]) for path in (run / "checkpoints").glob("step_*")), default=0)


def _logged(run: Path) -> int:
    """The last step in timing.jsonl, which has a line per 5 steps."""
    lines = (run / "timing.jsonl").read_text().splitlines() if (run / "timing.jsonl").exists() else []
    return 5 * len(lines)
