"""docs/notebooks: they run from top to bottom, and are committed without paths, times and messages."""

import json
import re
import shutil

import pytest
from tests.docs.tools import DOCS, notebook

FILES = sorted((DOCS / "notebooks").glob("*.ipynb"))
QUICK = {
    "classify": {"EPOCHS": 1},
    "explain": {"EPOCHS": 1},
    "dense": {"SEGMENT_STEPS": 1, "DETECT_STEPS": 1, "SMALLER": {"data.batch_size": 2}},
}


def name_of(path):
    return path.stem


def test_there_are_three():
    assert {path.stem for path in FILES} == {"classify", "dense", "explain"} == set(QUICK)


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_what_is_committed_is_clean(path):
    text = path.read_text()
    assert (
        json.dumps(notebook.cleaned(json.loads(text)), indent=1, ensure_ascii=False, sort_keys=True) + "\n"
        == text
    )
    assert not re.search(r"/(?:home|root|tmp|work|Users)/|images/s|\d{4}-\d\d-\d\d", text)
    assert path.stat().st_size < 400_000


def test_parameters_are_replaced():
    changed = notebook.with_parameters(notebook.read(DOCS / "notebooks" / "explain.ipynb"), {"EPOCHS": 1})
    assert any(notebook.source(cell) == "EPOCHS = 1" for cell in changed["cells"])
    with pytest.raises(ValueError, match=r"^The notebook has no parameter 'STEPS'\.$"):
        notebook.with_parameters(changed, {"STEPS": 1})


@pytest.mark.nightly
@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_a_notebook_runs(path, tmp_path):
    pytest.importorskip("nbclient")
    pytest.importorskip("ipykernel")
    changed = notebook.with_parameters(notebook.read(path), QUICK[path.stem])
    done = notebook.cleaned(notebook.execute(changed, tmp_path))
    pictures = [len(cell.get("outputs", ())) for cell in done["cells"]]
    assert sum(pictures) >= sum(len(cell.get("outputs", ())) for cell in notebook.read(path)["cells"])
    shutil.rmtree(tmp_path)
