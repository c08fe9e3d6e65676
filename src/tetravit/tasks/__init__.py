"""Training methods; one task per file."""

from tetravit.registry import discover
from tetravit.tasks.base import Task, TaskConfig

TASKS: dict[str, type[Task]] = discover(__name__, "TASKS")

__all__ = ["TASKS", "Task", "TaskConfig"]
