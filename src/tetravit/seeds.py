"""Randomness without state: what is drawn in a step is a function of where the step stands, nothing else."""

import hashlib

import torch


def mixed(*parts: int) -> int:
    """One 63-bit seed from several integers; near ones give unrelated seeds."""
    digest = hashlib.blake2b(",".join(map(str, parts)).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1


def seed_step(seed: int, step: int, micro: int, rank: int) -> None:
    """Set torch's generators for one micro-batch: stochastic depth, dropout and mixing follow from it."""
    torch.manual_seed(mixed(seed, step, micro, rank))
