"""`tetravit evaluate --protocol knn` and what the command line says of self-supervised runs that cannot be."""

import json

import pytest
from tests.test_dino_runs import RECIPE

from tetravit.models import create_model, save
from tetravit.recipe import dump, loads
from tetravit.structures import Preprocess


@pytest.fixture(scope="module")
def features(tmp_path_factory):
    """Untrained weights without classes, with the recipe of a self-supervised run."""
    model = create_model("xcit_nano_12_p8", num_classes=0, depth=1, dim=32)
    model.input = Preprocess(size=32, crop=1.0)
    file = tmp_path_factory.mktemp("features") / "last.safetensors"
    save(model, file, recipe=dump(loads(RECIPE, ["data.options={fraction = 0.1}"])))
    return file


@pytest.mark.parametrize("which", ["features", "weights"])
def test_knn_as_one_json_object(ask, request, which):
    file = request.getfixturevalue(which)
    answer = ask("evaluate", file, "--protocol", "knn", "--json", "evaluate.ks=[10, 20]", "--device", "cpu")
    assert answer.code == 0, answer.err
    row = json.loads(answer.out)
    assert (row["weights"], row["data"], row["images"]) == (str(file), "digits", 359)
    scores = {name: row[name] for name in row if name.startswith("knn")}
    assert list(scores) == ["knn_10", "knn_10_top5", "knn_20", "knn_20_top5"]
    assert 0.1 < scores["knn_20"] <= scores["knn_20_top5"] <= 1
    assert row["references"] == []


def test_more_neighbours_than_training_images(ask, features):
    answer = ask("evaluate", features, "--protocol", "knn", "evaluate.ks=[2000]", "--device", "cpu")
    assert (answer.code, answer.out) == (2, "")
    assert answer.err == (
        "tetravit evaluate: k-NN with 2000 neighbours needs as many training images; there are 139."
        " Set evaluate.ks.\n"
    )


def test_a_batch_too_small_for_batch_norm(ask, tmp_path):
    (tmp_path / "mine.toml").write_text(RECIPE)
    answer = ask("train", tmp_path / "mine.toml", "data.batch_size=1", "--into", tmp_path / "run")
    assert answer.code == 2
    assert answer.err == "tetravit train: BatchNorm in the head needs data.batch_size from 2 up; got 1.\n"
    assert not (tmp_path / "run").exists()
