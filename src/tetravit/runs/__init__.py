"""A recipe becomes a run folder, or a run goes on; see `train`."""

from tetravit.runs.train import train

__all__ = ["train"]
