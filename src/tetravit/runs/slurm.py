"""A run as a SLURM job: a script with one task per device, which saves before the time limit and requeues itself."""

import shlex
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from tetravit.engine.signals import Interrupted

AHEAD_S = 180  # before the time limit: for the current step and its checkpoint
# Options of `--slurm` besides long options of sbatch: their number in the script, and their default value.
SHORT = {"gpus": "--gpus-per-node", "cpus": "--cpus-per-task"}


def options(text: str) -> dict[str, str]:
    """Parse `nodes=2,gpus=8,partition=a100`; the default of `nodes` and `gpus` (per node) is 1.

    Raises:
        ValueError: for a part that is not name=value, or an invalid number.
    """
    table = {"nodes": "1", "gpus": "1"}
    for part in filter(None, text.split(",")):
        name, equals, value = part.partition("=")
        if not (name and equals and value):
            raise ValueError(
                f"--slurm reads name=value,name=value: nodes=2,gpus=8,partition=a100; got {part!r}."
            )
        table[name.removeprefix("--")] = value
    for name in ("nodes", "gpus"):
        if not table[name].isdecimal() or (name == "nodes" and table[name] == "0"):
            raise ValueError(f"--slurm takes a number of {name}; got {table[name]!r}.")
    return table


def script(arguments: Sequence[str], folder: Path, wanted: dict[str, str]) -> str:
    """The job script of `tetravit train ARGUMENTS --into FOLDER --continue`.

    wanted: from `options`. With gpus=0 a node has one task, on its CPUs.
    """
    lines = {
        "--job-name": f"tetravit-{folder.name}",
        "--nodes": wanted["nodes"],
        "--ntasks-per-node": str(max(1, int(wanted["gpus"]))),
        "--output": f"{folder.absolute()}/slurm-%j.log",
        "--open-mode": "append",
        "--signal": f"USR1@{AHEAD_S}",
    }
    for name, value in wanted.items():
        if name != "nodes" and (name, value) != ("gpus", "0"):
            lines[SHORT.get(name, f"--{name}")] = value
    command = [
        sys.executable,
        "-m",
        "tetravit",
        "train",
        *arguments,
        "--into",
        str(folder.absolute()),
        "--continue",
    ]
    head = "\n".join(f"#SBATCH {name}={value}" for name, value in lines.items())
    again = Interrupted.exit_code
    return f"""#!/bin/bash
{head}
#SBATCH --requeue

# One task a device. {AHEAD_S} s before the time limit each gets USR1: the run is saved and ends with {again}.
srun --kill-on-bad-exit=1 {shlex.join(command)}
code=$?
if [ "$code" -eq {again} ]; then
  scontrol requeue "$SLURM_JOB_ID"
fi
exit "$code"
"""


def submit(text: str, folder: Path) -> str:
    """Write the script into the folder and submit it; returns the output of sbatch.

    Raises:
        ValueError: if sbatch is not installed, or rejects the script.
    """
    if shutil.which("sbatch") is None:
        raise ValueError("There is no sbatch on PATH here; --dry-run prints the script.")
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / "slurm.sh"
    file.write_text(text)
    done = subprocess.run(["sbatch", str(file)], capture_output=True, text=True)
    if done.returncode:
        raise ValueError(f"sbatch refused {file}: {' '.join(done.stderr.split())}")
    return done.stdout.strip()
