"""What tests of tasks and protocols share: a data set's description, a place in a run, scoring by a protocol."""

from tetravit.data.config import DataConfig
from tetravit.data.datasets.base import DatasetInfo
from tetravit.protocols import PROTOCOLS, Loaders
from tetravit.tasks.base import Progress

START = Progress(0, 10, 5)


def described(num_classes, kind="classify", **facts):
    return DatasetInfo(kind, num_classes, tuple(f"c{i}" for i in range(num_classes)), **facts)


def data_section(mix="", **keys):
    """A section [data]: a task is prepared with it."""
    return DataConfig(**{"name": "digits", "batch_size": 4, "mix": mix, **keys})


def scored(task, batches, **config):
    """The scores and findings of a task's weights, by its protocol."""
    row = PROTOCOLS[task.protocol]
    protocol = row(row.Config(protocol=task.protocol, **config))
    return protocol.score(task.weights(), Loaders(batches, task.data))
