"""Progress in a notebook: what a cell shows while a run goes on."""

import sys
import time

import pytest

from tetravit import notebook
from tetravit.engine.log import Console, Plan
from tetravit.notebook import NotebookBar, in_notebook


class Shell:
    kernel = object()


class Handle:
    """What IPython's display gives: it keeps what is shown."""

    def __init__(self):
        self.shown = []

    def update(self, bar):
        self.shown.append(bar._repr_html_())


@pytest.fixture
def cell(monkeypatch):
    """A cell of a notebook, without a kernel."""
    handle = Handle()
    display = pytest.importorskip("IPython.display")
    ipython = sys.modules["IPython"]
    monkeypatch.setattr(ipython, "get_ipython", Shell)
    monkeypatch.setattr(display, "display", lambda bar, display_id: handle.update(bar) or handle)
    return handle


def test_a_terminal_and_a_script_are_no_notebook(monkeypatch):
    assert not in_notebook()
    monkeypatch.setitem(sys.modules, "IPython", None)
    assert not in_notebook()


def test_a_bar_is_html_that_is_replaced(cell, monkeypatch):
    monkeypatch.setattr(notebook, "INTERVAL_S", 0.0)
    bar = NotebookBar(total=4, text="<loss>")
    bar.update(3)
    assert cell.shown[-1] == (
        '<div><progress value="3" max="4" style="width:20em"></progress> 3/4  &lt;loss&gt;</div>'
    )
    NotebookBar(done=7).stop()
    assert cell.shown[-1] == "<div><progress></progress> 7</div>"


def test_updates_are_few(cell):
    bar = NotebookBar(total=1000)
    for done in range(1000):
        bar.update(done)
    assert len(cell.shown) < 5 + (time.monotonic() - bar._shown) / notebook.INTERVAL_S
    bar.update(1000)
    bar.stop()
    assert "1000/1000" in cell.shown[-1]


def test_a_run_shows_its_bar_below_the_cell(cell, capsys):
    console = Console()
    console.start(Plan([("model", "small")], total_steps=10, steps_per_epoch=5))
    console.step({"step": 5, "epoch": 1.0, "loss": 1.5, "timing": {"images_per_s": 10.0, "left_s": 3.0}})
    console.evaluated({"step": 5, "epoch": 1.0, "top1": 0.5})
    console.stop()
    assert "5/10  epoch 1.0  loss 1.5  10 images/s  0:03 left" in cell.shown[-1]
    text = capsys.readouterr().err
    assert "model  small" in text
    assert "top1 0.5" in text
    assert "loss" not in text


CELL = """
import tetravit
summary = tetravit.train(
    "digits", run_dir="run", steps=3, data={"batch_size": 16, "workers": 0, "options": {"fraction": 0.05}},
    model={"options": {"depth": 1, "dim": 32, "num_heads": 2}}, run={"log_steps": 1, "device": "cpu"},
)
"""


@pytest.mark.slow
def test_a_kernel_shows_the_bar_of_a_run(tmp_path):
    nbclient = pytest.importorskip("nbclient")
    nbformat = pytest.importorskip("nbformat")
    pytest.importorskip("ipykernel")
    book = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(CELL)])
    nbclient.NotebookClient(book, timeout=120, resources={"metadata": {"path": str(tmp_path)}}).execute()
    pages = [o["data"]["text/html"] for o in book.cells[0].outputs if "text/html" in o.get("data", {})]
    assert len(pages) == 1
    assert '<progress value="3" max="3"' in pages[0]
    assert "3/3" in pages[0]
