"""A run as a SLURM job, with stand-ins for sbatch, srun and scontrol on PATH."""

import os
import subprocess
import sys
import time

import pytest

from tetravit.runs.slurm import options, script

RECIPE = [
    "digits", "steps=60", "optim.warmup_epochs=0", "model.name=xcit_nano_12_p16", "model.options.depth=1",
    "data.options.fraction=0.2", "data.workers=0", "data.batch_size=16", "run.log_steps=1", "run.save_steps=0",
    "run.evaluate_epochs=0", "run.device=cpu",
]  # fmt: skip

SBATCH = """#!/bin/sh
echo "$@" >> {calls}
SLURM_JOB_ID=77 SLURM_NTASKS=2 SLURM_JOB_NODELIST=localhost bash "$1" > {calls}.log 2>&1 &
echo Submitted batch job 77
"""
SRUN = """#!/bin/sh
shift
for i in 0 1; do
  SLURM_PROCID=$i SLURM_LOCALID=$i "$@" & eval p$i=$!
done
echo "$p0 $p1" > {calls}.pids
code=0
wait $p0 || code=$?
wait $p1 || code=$?
exit $code
"""
SCONTROL = """#!/bin/sh
echo "$@" >> {calls}
"""


def test_the_script_says_everything(tmp_path):
    text = script(
        ["xcit/imagenet", "data.root=/a b"], tmp_path, options("nodes=2,gpus=8,partition=a100,time=8:00:00")
    )
    head = [line for line in text.splitlines() if line.startswith("#SBATCH")]
    assert head == [
        f"#SBATCH --job-name=tetravit-{tmp_path.name}",
        "#SBATCH --nodes=2",
        "#SBATCH --ntasks-per-node=8",
        f"#SBATCH --output={tmp_path}/slurm-%j.log",
        "#SBATCH --open-mode=append",
        "#SBATCH --signal=USR1@180",
        "#SBATCH --gpus-per-node=8",
        "#SBATCH --partition=a100",
        "#SBATCH --time=8:00:00",
        "#SBATCH --requeue",
    ]
    assert (
        f"srun --kill-on-bad-exit=1 {sys.executable} -m tetravit train xcit/imagenet 'data.root=/a b'"
        f" --into {tmp_path} --continue\n"
    ) in text
    assert subprocess.run(["bash", "-n"], input=text, text=True).returncode == 0


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("nodes", "--slurm reads name=value,name=value: nodes=2,gpus=8,partition=a100; got 'nodes'."),
        ("nodes=two", "--slurm takes a number of nodes; got 'two'."),
    ],
)
def test_mistakes(text, message):
    with pytest.raises(ValueError) as error:
        options(text)
    assert str(error.value) == message


def test_a_dry_run_prints_the_script_and_nothing_else(ask, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    answer = ask("train", *RECIPE, "--slurm", "nodes=2,gpus=4", "--dry-run")
    assert answer.code == 0, answer.err
    assert answer.out.startswith("#!/bin/bash\n#SBATCH --job-name=tetravit-")
    assert "xcit_nano_12_p16_digits --continue\n" in answer.out
    assert list(tmp_path.iterdir()) == []
    monkeypatch.setenv("PATH", str(tmp_path))
    answer = ask("train", *RECIPE, "--slurm", "nodes=2")
    assert answer.err == "tetravit train: There is no sbatch on PATH here; --dry-run prints the script.\n"


@pytest.mark.nightly
def test_a_job_is_saved_ahead_of_its_limit_and_queued_again(tmp_path, monkeypatch):
    calls, run = tmp_path / "calls", tmp_path / "run"
    for name, text in (("sbatch", SBATCH), ("srun", SRUN), ("scontrol", SCONTROL)):
        (tmp_path / name).write_text(text.format(calls=calls))
        (tmp_path / name).chmod(0o755)
    environment = {**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "tetravit", "train", *RECIPE, "--into", str(run), "--slurm", "gpus=2"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "Submitted batch job 77\n")
    log = tmp_path / "calls.log"

    def wait(condition):
        deadline = time.monotonic() + 120
        while not condition():
            assert time.monotonic() < deadline, log.read_text()
            time.sleep(0.05)

    wait(lambda: (run / "metrics.jsonl").exists() and (run / "metrics.jsonl").stat().st_size)
    for pid in (tmp_path / "calls.pids").read_text().split():
        os.kill(int(pid), 10)  # SIGUSR1, as SLURM sends it to all tasks
    wait(lambda: "requeue 77" in calls.read_text())
    assert "Stopped by SIGUSR1 after step " in log.read_text()
    assert not (run / "lock.json").exists()
    subprocess.run(["sbatch", str(run / "slurm.sh")], env=environment, check=True, capture_output=True)
    wait(lambda: (run / "last.safetensors").exists())
    assert calls.read_text().count("requeue") == 1
