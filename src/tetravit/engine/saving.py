"""Checkpoints in the background: a thread writes a copy; each write finishes before the next starts."""

import copy
import threading
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from tetravit.engine.checkpoint import Checkpoints, Copied

LOST = 3  # consecutive failed saves, other than for a full disk, after which the folder counts as lost


class FolderLost(Exception):
    """The run folder is no longer writable.

    step: of the last state. reason: error of the system. tensors, facts: that state, for a checkpoint elsewhere.
    """

    def __init__(
        self, step: int, reason: str, tensors: Mapping[str, Copied], facts: Mapping[str, Any]
    ) -> None:
        self.step, self.reason, self.tensors, self.facts = step, reason, tensors, facts
        super().__init__(f"The run folder takes no checkpoints: {reason}.")


class Saver:
    """Saves the checkpoints of a run on rank 0; no effect on other ranks, or without a folder.

    background: whether training continues meanwhile. After a failed save, the next one is synchronous.
    """

    def __init__(self, checkpoints: Checkpoints | None, *, background: bool = True) -> None:
        self._checkpoints, self._background = checkpoints, background
        self._thread: threading.Thread | None = None
        self._error: BaseException | None = None
        self._notes: list[str] = []

    @property
    def active(self) -> bool:
        """Whether there is a folder for checkpoints."""
        return self._checkpoints is not None

    def save(self, step: int, tensors: Mapping[str, Mapping[str, Tensor]], facts: Mapping[str, Any]) -> None:
        """Copy all tensors, and write the checkpoint of `step`.

        Raises:
            OSError: if this save (if synchronous) or the previous one failed and `on_full` is `stop`.
            FolderLost: at the third consecutive failure.
        """
        checkpoints = self._checkpoints
        if checkpoints is None:
            return
        self.wait()
        copies = {name: Copied(group) for name, group in tensors.items()}
        facts = copy.deepcopy(dict(facts))
        say, checkpoints.say = checkpoints.say, self._notes.append

        def write() -> None:
            try:
                checkpoints.save(step, copies, facts)
            except BaseException as error:
                self._error = error
            finally:
                checkpoints.say = say

        self._thread = threading.Thread(target=write, name="checkpoint")
        self._thread.start()
        if not self._background or checkpoints.failures:
            self.wait()
            if len(checkpoints.failures) >= LOST:
                raise FolderLost(step, checkpoints.failures[-1], copies, facts)

    def wait(self) -> None:
        """Wait for the pending write; forwards its messages and its error."""
        thread, self._thread = self._thread, None
        if thread is not None:
            thread.join()
        notes, self._notes[:] = list(self._notes), []
        for note in notes:
            assert self._checkpoints is not None
            self._checkpoints.say(note)
        error, self._error = self._error, None
        if error is not None:
            raise error
