"""The report of a self-supervised run: scores of features, measures of a collapse, neighbours, map, events."""

import json

import pytest
from tests.test_dino_runs import RECIPE
from tests.test_report import outline

from tetravit.data.datasets import DATASETS
from tetravit.recipe import dump, loads
from tetravit.report import write


@pytest.fixture
def folder(tmp_path):
    """A run folder with made-up figures."""
    (tmp_path / "recipe.toml").write_text(dump(loads(RECIPE)))
    measured = {"teacher_entropy": 1.5, "mean_entropy": 2.5, "information": 1.0, "feature_spread": 0.4}
    measured |= {"agreement": 0.75, "center_norm": 3.0, "center_max": 0.6}
    rows = [{"event": "step", "step": s, "epoch": s / 2, "lr": 1e-3, "loss": 2.5, **measured} for s in (2, 4)]
    scores = {"event": "evaluation", "step": 4, "epoch": 2.0, "knn_1": 0.8, "knn_1_top5": 0.8, "knn_5": 0.625}
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in [*rows, scores]))
    events = [
        {"step": 3, "what": "loss", "names": [], "images": ["a"], "checkpoint": 2, "attempt": 1},
        {"step": 3, "what": "loss", "names": [], "images": ["a"], "checkpoint": 2, "attempt": None},
    ]
    (tmp_path / "events.jsonl").write_text("".join(json.dumps(row) + "\n" for row in events))
    val = DATASETS["digits"](None, "val")
    near = [{"name": "<t>", "index": i, "label": i, "similarity": 0.9 - i / 10} for i in range(3)]
    findings = {
        "class_names": [*val.class_names[:9], "<b>9</b>"],
        "neighbours": [{"name": val[7].name, "index": 7, "label": 1, "neighbours": near}],
        "map": [[-0.5, 0.25, 0], [0.5, -0.25, 9], [0.1, 0.1, 9]],
    }
    (tmp_path / "evaluation.json").write_text(json.dumps({**scores, "weights": "raw", **findings}))
    return tmp_path


def test_the_page_says_what_the_folder_says(folder):
    html = write(folder).read_text()
    found = outline(html)
    texts = " ".join(found.texts)
    for words in (
        "k-NN, k = 5",
        "62.50 %",
        "Information",
        "Nearest neighbours",
        "Map of the features",
        "Top-1 accuracy of the features",
        "agreement of two views",
        "Returns to a checkpoint",
        "given up",
        "embed",
    ):
        assert words in texts, words
    assert "tetravit predict" not in texts
    assert html.count('<circle class="dot" ') == 3
    assert len(found.addresses) == 4  # an image and its three neighbours
    assert all(address.startswith("data:image/png;base64,") for address in found.addresses)
    assert "<b>9</b>" not in html
    assert "<t>" not in html
    assert html.isascii()


def test_a_run_without_findings_or_events(folder):
    for name in ("events.jsonl", "evaluation.json"):
        (folder / name).unlink()
    texts = outline(write(folder).read_text()).texts
    assert not {"Nearest neighbours", "Map of the features", "Returns to a checkpoint"} & set(texts)
