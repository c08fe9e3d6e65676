"""Run units as a SLURM job array: a script in the result folder, which is submitted.

Each array task runs every n-th unit with the engine `local`; a killed task is requeued, and skips finished units.
"""

import shlex
import shutil
import subprocess
from collections.abc import Callable, Sequence

from tetravit.bulk.base import Engine, Settings
from tetravit.bulk.parts.plan import Plan, Unit

OPTIONS = ("tasks", "partition", "account", "time", "gpus", "cpus", "mem", "qos", "constraint")
FLAGS = {"gpus": "gres=gpu:{}", "cpus": "cpus-per-task={}"}
TASKS = 16


def run(plan: Plan, units: Sequence[Unit], settings: Settings, progress: Callable[[int, int], object]) -> str:
    """Write the script and submit it; with `dry_run` print it.

    Raises:
        ValueError: if sbatch is missing, or fails.
    """
    text = script(plan, len(units), settings)
    if settings.dry_run:
        print(text)
        return f"{len(units)} units; nothing was submitted."
    file = plan.folder / "array.sh"
    file.write_text(text)
    if shutil.which("sbatch") is None:
        raise ValueError(f"There is no sbatch on this machine; the script is {file}.")
    done = subprocess.run(["sbatch", str(file)], capture_output=True, text=True, check=False)
    if done.returncode:
        raise ValueError(f"sbatch refused {file}: {' '.join(done.stderr.split())}.")
    return done.stdout.strip()


def script(plan: Plan, units: int, settings: Settings) -> str:
    """The script of an array.

    Raises:
        ValueError: for an invalid number of tasks.
    """
    given = dict(settings.options)
    wanted = given.pop("tasks", str(TASKS))
    if not wanted.isdecimal() or not int(wanted):
        raise ValueError(f"tasks is a number from 1 up; got {wanted!r}.")
    tasks = min(int(wanted), units)
    flags = [FLAGS.get(name, f"{name}={{}}").format(value) for name, value in given.items()]
    lines = [
        "#!/bin/bash",
        f"#SBATCH --job-name=tetravit-{plan.verb}",
        f"#SBATCH --array=0-{tasks - 1}",
        f"#SBATCH --output={plan.folder}/slurm-%A_%a.log",
        "#SBATCH --open-mode=append",
        "#SBATCH --requeue",
        *(f"#SBATCH --{flag}" for flag in flags),
        "",
        f'exec {shlex.join(settings.command)} --engine local --only "$SLURM_ARRAY_TASK_ID/{tasks}"',
    ]
    return "\n".join([*lines, ""])


ENGINES = {"slurm": Engine("a job array of SLURM", run, OPTIONS)}
