"""`tetravit train pretrain` on a folder of images, and what its weights are used for."""

import json

import numpy as np
import pytest
from PIL import Image

TINY = ["model.name=xcit_nano_12_p16", "model.options={depth = 1, dim = 32}", "data.image_size=32"]


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """Twelve images without labels at two depths, and a labelled set of two classes."""
    root, rng = tmp_path_factory.mktemp("photos"), np.random.default_rng(0)
    for i in range(12):
        for place in (f"all/{i % 2}", f"labelled/train/{i % 2}", f"labelled/val/{i % 2}"):
            (root / place).mkdir(parents=True, exist_ok=True)
            pixels = rng.integers(0, 255 if i % 2 else 80, (40 + i, 50, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(root / place / f"{i}.png")
    return root


@pytest.fixture(scope="module")
def run(photos):
    """Two epochs of the recipe."""
    from tetravit.recipe import find, load
    from tetravit.runs import train

    changes = ["epochs=2", f"data.root={photos / 'all'}", "data.workers=0", *TINY, "run.device=cpu"]
    changes += ["task.local_views=1", "task.local_view=crop(32, (0.05, 0.3))", "task.hidden=16"]
    train(load(find("pretrain"), changes), photos / "run", reporters=[])
    return photos / "run"


def test_an_unlabelled_folder_trains(run):
    assert (run / "last.safetensors").is_file()
    assert "Information" in (run / "report.html").read_text()
    steps = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert steps[-1]["step"] == 2
    assert 0 <= steps[-1]["information"] <= np.log(12)


def test_its_features_are_written_and_judged(ask, photos, run, tmp_path):
    out = tmp_path / "f.npz"
    assert ask("embed", run, photos / "all", "--out", out, "--device", "cpu").code == 0
    with np.load(out) as found:
        assert found["features"].shape == (12, 32)
        assert len(found["names"]) == 12
    data = ["data.name=image_folder", f"data.root={photos / 'labelled'}", "--device", "cpu"]
    answer = ask("evaluate", run, "--protocol", "knn", "--json", "evaluate.ks=[1]", *data)
    assert answer.code == 0, answer.err
    assert 0 <= json.loads(answer.out)["knn_1"] <= 1


def test_a_set_without_labels_is_not_judged(ask, photos, run):
    answer = ask("evaluate", run, f"data.val={photos / 'all'}", "--device", "cpu")
    assert answer.code == 2
    assert answer.err == (
        "tetravit evaluate: Features are scored on images with one class each; this set has none.\n"
    )


def test_a_labelled_set_without_classes(ask, photos, tmp_path):
    root = photos / "all"
    command = ["train", "pretrain", "data.name=image_folder", f"data.train={root / '0'}", *TINY]
    answer = ask(*command, "--into", tmp_path / "run")
    assert answer.code == 2
    assert answer.err == (
        f"tetravit train: Classification needs two class folders or more in '{root / '0'}'; found none."
        " Images without labels are data.name=unlabelled.\n"
    )


def test_one_image(ask, photos, tmp_path):
    (tmp_path / "one").mkdir()
    (tmp_path / "one" / "0.png").write_bytes((photos / "all" / "0" / "0.png").read_bytes())
    answer = ask("train", "pretrain", f"data.root={tmp_path / 'one'}", *TINY, "--into", tmp_path / "run")
    assert answer.code == 2
    assert answer.err == ("tetravit train: Self-supervised training needs two images or more; got 1.\n")
    assert not (tmp_path / "run").exists()
