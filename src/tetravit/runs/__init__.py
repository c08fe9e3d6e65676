"""Run a recipe into a run folder, or continue a run; see `train`."""

from tetravit.runs.train import train

__all__ = ["train"]
