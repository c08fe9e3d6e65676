"""Progress bar in a notebook: plain HTML, updated in place, without widgets, scripts or requests."""

import html
import sys
import time
from typing import Any

INTERVAL_S = 0.25  # between updates


def in_notebook() -> bool:
    """Whether this process is a notebook kernel (Jupyter, VS Code, Colab)."""
    ipython: Any = sys.modules.get("IPython")
    shell = ipython.get_ipython() if ipython is not None else None
    return getattr(shell, "kernel", None) is not None


class NotebookBar:
    """A progress bar below the running cell; its last state remains.

    Args:
        total: number of items; None: not known yet.
        done: initial count.
        text: label of the bar.
    """

    def __init__(self, total: int | None = None, done: int = 0, text: str = "") -> None:
        from IPython.display import display

        self.total, self.done, self.text = total, done, text
        self._handle = display(self, display_id=True)
        self._shown = time.monotonic()

    def update(self, done: int | None = None, text: str | None = None, total: int | None = None) -> None:
        """Update the bar, at most four times per second."""
        self.done = self.done if done is None else done
        self.text = self.text if text is None else text
        self.total = self.total if total is None else total
        if time.monotonic() - self._shown >= INTERVAL_S:
            self._show()

    def stop(self) -> None:
        """Show the final state."""
        self._show()

    def _show(self) -> None:
        self._handle.update(self)
        self._shown = time.monotonic()

    def _repr_html_(self) -> str:
        bar = "<progress></progress>"
        if self.total:
            bar = f'<progress value="{self.done}" max="{self.total}" style="width:20em"></progress>'
        return f"<div>{bar} {html.escape(repr(self))}</div>"

    def __repr__(self) -> str:
        count = f"{self.done}/{self.total}" if self.total is not None else f"{self.done}"
        return f"{count}  {self.text}".rstrip()
