"""The processes of a run, started by torchrun, SLURM or Ray, one device each; collectives over all of them."""

import os
import re
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

TCPStore: Any = getattr(dist, "TCPStore", None)  # missing in builds of torch without distributed


@dataclass(frozen=True)
class World:
    """This process among the processes of a run.

    device: the device of this process. control: a gloo group for flags and plain data, to avoid GPU synchronization.
    address: host and port of a store that all ranks can reach.
    """

    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    rank: int = 0
    size: int = 1
    control: Any = None
    address: tuple[str, int] | None = None

    @property
    def is_main(self) -> bool:
        """Whether this is rank 0, which writes files and prints for all."""
        return self.rank == 0

    def any(self, *flags: bool) -> list[bool]:
        """For each flag: whether it is set on any rank."""
        if self.size == 1:
            return list(flags)
        table = torch.tensor(flags, dtype=torch.int32)
        dist.all_reduce(table, op=dist.ReduceOp.MAX, group=self.control)
        return [bool(flag) for flag in table.tolist()]

    def gather(self, value: Any) -> list[Any]:
        """The values of all ranks, in rank order; plain data only."""
        if self.size == 1:
            return [value]
        values: list[Any] = [None] * self.size
        dist.all_gather_object(values, value, group=self.control)
        return values

    def all_gather(self, values: list[Any]) -> list[Any]:
        """The lists of all ranks, one after another; plain data only."""
        return values if self.size == 1 else [value for part in self.gather(values) for value in part]

    def all_sum(self, value: Tensor) -> Tensor:
        """The sum of a tensor on this process's device over all ranks, in place."""
        if self.size > 1:
            dist.all_reduce(value)
        return value

    def set_timeout(self, seconds: float) -> None:
        """Timeout of collectives."""
        for group in (None, self.control) if self.size > 1 else ():
            dist.distributed_c10d._set_pg_timeout(timedelta(seconds=seconds), group)

    def broadcast(self, value: Any) -> Any:
        """The value of rank 0, on every rank; plain data only."""
        if self.size == 1:
            return value
        box = [value]
        dist.broadcast_object_list(box, src=0, group=self.control)
        return box[0]


def pick_device(wanted: str, local_rank: int = 0) -> torch.device:
    """`auto`, `cpu`, `cuda`, `cuda:1`, `1` (that GPU), `mps` -> an available device.

    Raises:
        ValueError: if the machine does not have the device.
    """
    if wanted.isdecimal():
        wanted = f"cuda:{int(wanted)}"
    if wanted == "auto":
        wanted = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(wanted)
    except RuntimeError:
        device = torch.device("meta")
    if device.type not in ("cpu", "cuda", "mps"):
        raise ValueError(f"A device is auto, cpu, cuda, cuda:N or mps; got {wanted!r}.")
    if device.type == "cuda":
        if not torch.cuda.is_available():
            why = (
                "PyTorch finds no GPU"
                if torch.backends.cuda.is_built()
                else "this build of PyTorch has no CUDA"
            )
            raise ValueError(f"There is no device {wanted!r}: {why}; auto and cpu compute on the CPU.")
        device = torch.device("cuda", local_rank if device.index is None else device.index)
        if device.index >= torch.cuda.device_count():
            raise ValueError(
                f"There is no device {str(device)!r}: PyTorch finds {torch.cuda.device_count()} GPUs, counted from 0."
            )
    if device.type == "mps" and not torch.backends.mps.is_available():
        raise ValueError(
            "There is no device 'mps': PyTorch finds no GPU of Apple; auto and cpu compute on the CPU."
        )
    return device


def places() -> tuple[int, int, int]:
    """Rank, local rank and number of processes, from the environment of torchrun, Ray or SLURM (one task per device).

    With SLURM the address of rank 0 is taken from the node list, unless it is set.
    """
    environment = os.environ
    if "WORLD_SIZE" in environment:
        return (
            int(environment.get("RANK", "0")),
            int(environment.get("LOCAL_RANK", "0")),
            int(environment["WORLD_SIZE"]),
        )
    size = int(environment.get("SLURM_STEP_NUM_TASKS") or environment.get("SLURM_NTASKS") or "1")
    if size == 1 or "SLURM_PROCID" not in environment or "SLURM_LOCALID" not in environment:
        return 0, 0, 1
    nodes = environment.get("SLURM_STEP_NODELIST") or environment.get("SLURM_JOB_NODELIST") or "localhost"
    os.environ.setdefault("MASTER_ADDR", first_host(nodes))
    os.environ.setdefault("MASTER_PORT", str(20_000 + int(environment.get("SLURM_JOB_ID", "0")) % 20_000))
    return int(environment["SLURM_PROCID"]), int(environment["SLURM_LOCALID"]), size


def first_host(nodes: str) -> str:
    """The first host of a SLURM node list: `gpu[03-05,9],login` -> `gpu03`."""
    match = re.match(r"([^,\[]+)(?:\[([^\],-]+)[^\]]*\])?([^,\[]*)", nodes)
    return "".join(part or "" for part in match.groups()) if match else nodes


def _store(rank: int) -> Any:
    """A new store for every start of the ranks; None: torch creates it.

    torchrun keeps one store over restarts, which may contain addresses of dead ranks.
    """
    if os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True":
        return None
    host, key = os.environ["MASTER_ADDR"], "tetravit/store"
    shared = TCPStore(host, int(os.environ["MASTER_PORT"]), is_master=False, wait_for_workers=False)
    if rank == 0:
        own = TCPStore(host, 0, is_master=True, wait_for_workers=False)
        shared.set(key, str(own.port))
        return own
    while True:  # until torchrun ends it: the port may still be in use by the last start
        try:
            port, short = int(shared.get(key)), timedelta(seconds=2)
            store = TCPStore(host, port, is_master=False, wait_for_workers=False, timeout=short)
        except RuntimeError:
            time.sleep(0.2)
            continue
        store.set_timeout(timedelta(minutes=30))
        return store


@contextmanager
def world(device: str = "auto") -> Iterator[World]:
    """Join the processes started by torchrun, SLURM or Ray; without them, a world of size one."""
    rank, local_rank, size = places()
    if size == 1:
        yield World(pick_device(device))
        return
    here = pick_device(device, local_rank)
    if here.type == "cuda":
        torch.cuda.set_device(here)
    joined, address = not dist.is_initialized(), None
    if "MASTER_ADDR" in os.environ and "MASTER_PORT" in os.environ:
        address = (os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"]))
    if joined:
        backend, store = "nccl" if here.type == "cuda" else "gloo", _store(rank)
        if store is not None:
            address = (os.environ["MASTER_ADDR"], store.port)
        where: dict[str, Any] = {} if store is not None else {"init_method": "env://"}
        dist.init_process_group(backend, store=store, rank=rank, world_size=size, **where)
    try:
        yield World(here, rank, size, dist.new_group(backend="gloo"), address)
    finally:
        if joined:
            dist.destroy_process_group()
