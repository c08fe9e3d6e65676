"""Training, evaluation and prediction from Python."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import tetravit
from tetravit.data.datasets import DATASETS
from tetravit.models import create_model, save
from tetravit.recipe import dump, find, load
from tetravit.recipe_tables import as_overrides
from tetravit.structures import Preprocess

DIGITS = DATASETS["digits"](None, "val")
CHANGES = ["model.name=xcit_nano_12_p16", "model.options={depth = 1}", "data.options={fraction = 0.1}"]


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    torch.manual_seed(0)
    model = create_model("xcit_nano_12_p16", num_classes=10, depth=1)
    model.class_names, model.input = DIGITS.class_names, Preprocess(size=32, crop=1.0)
    file = tmp_path_factory.mktemp("weights") / "best.safetensors"
    save(model, file, recipe=dump(load(find("digits"), CHANGES)))
    return file


@pytest.fixture
def files(tmp_path):
    for i in range(2):
        Image.fromarray(DIGITS[i].image.permute(1, 2, 0).numpy()).save(tmp_path / f"{i}.png")
    return [tmp_path / "0.png", tmp_path / "1.png"]


def test_the_functions_are_there_whatever_was_imported_before():
    import tetravit.predictors
    import tetravit.runs.evaluate

    assert all(callable(f) for f in (tetravit.train, tetravit.evaluate, tetravit.predict))


def test_overrides_are_those_of_the_command_line():
    changes = as_overrides(
        {"epochs": 5, "optim": {"lr": 1e-3}, "data.root": "a b", "model": {"options": {"depth": 1}}}
    )
    assert changes == ["epochs=5", "optim.lr=0.001", 'data.root="a b"', "model.options.depth=1"]
    changes = as_overrides(
        {"epochs": np.int64(5), "data": {"train": [Path("a"), "b"]}, "optim.lr": torch.tensor(0.5)}
    )
    assert changes == ["epochs=5", 'data.train=["a", "b"]', "optim.lr=0.5"]
    with pytest.raises(
        ValueError, match=r"^data\.root=None sets nothing; leave it out to keep the value of the"
    ):
        as_overrides({"data": {"root": None}})
    with pytest.raises(
        ValueError, match=r"^optim\.lr takes a text, a number, a list or a table; got object\.$"
    ):
        as_overrides({"optim": {"lr": object()}})


def test_a_dry_run_checks_the_recipe(tmp_path, capsys):
    summary = tetravit.train("digits", run_dir=tmp_path / "run", dry_run=True, data={"batch_size": 32})
    assert summary.steps == 0
    assert not (tmp_path / "run").exists()
    assert "batch" in capsys.readouterr().err
    with pytest.raises(ValueError, match=r"^Unknown recipe 'digts'\. Did you mean 'digits'\?$"):
        tetravit.train("digts")
    with pytest.raises(
        ValueError, match=r"^Unknown recipe key 'learning_rate'\. Did you mean 'optim\.lr'\?$"
    ):
        tetravit.train("digits", learning_rate=1)


def test_evaluate_gives_scores(weights):
    result = tetravit.evaluate(weights)
    assert result.images == 359
    assert 0 <= result.scores["top1"] <= 1


def test_one_image_gives_one_prediction_in_any_form(weights, files):
    model = tetravit.load(weights)
    pixels = DIGITS[0].image
    forms = [
        str(files[0]),
        files[0],
        Image.open(files[0]),
        pixels,
        pixels.permute(1, 2, 0).numpy(),
        pixels / 255,
    ]
    found = [tetravit.predict(model, form, topk=3).to_dict() for form in forms]
    for facts in found:
        assert facts["top"] == found[0]["top"]
    assert [facts["image"] for facts in found[:3]] == [str(files[0]), str(files[0]), "image"]


def test_several_images_give_a_list(weights, files):
    found = tetravit.predict(weights, files, batch_size=2)
    assert [p.image for p in found] == files
    assert [facts["image"] for facts in found.to_dict()] == [str(file) for file in files]
    assert len(found.draw()) == 2
    assert len(tetravit.predict(weights, files[0].parent)) == 2
    array = np.stack([DIGITS[i].image.permute(1, 2, 0).numpy() for i in range(2)])
    assert [str(p.image) for p in tetravit.predict(weights, array)] == ["image 0", "image 1"]


def test_a_notebook_shows_the_picture(weights, files):
    prediction = tetravit.predict(weights, files[0])
    assert prediction._repr_png_().startswith(b"\x89PNG")
    assert prediction.draw().width == 480
    shown = tetravit.predict(weights, [files[0]] * 25)._repr_html_()
    assert shown.count("data:image/png;base64,") == 24
    assert shown.endswith("and 1 more</div>")


def test_an_image_that_cannot_be_read(weights, files, tmp_path):
    (tmp_path / "bad.png").write_bytes(b"no image")
    with pytest.raises(ValueError, match=r"^Cannot read image '.*bad\.png': it is not an image"):
        tetravit.predict(weights, tmp_path / "bad.png")
    found = tetravit.predict(weights, [files[0], tmp_path / "bad.png"])
    assert [p.error is None for p in found] == [True, False]
    assert found[1]._repr_png_() is None
    assert found._repr_html_().endswith(
        "bad.png: it is not an image (it begins with b&#x27;no image&#x27;)</div>"
    )
    assert len(found.draw()) == 1


def test_an_option_of_another_kind_of_model_is_refused(weights, files):
    with pytest.raises(
        ValueError, match=r"^scales is an option of a segmenter; the model is a classifier\.$"
    ):
        tetravit.predict(weights, files[0], scales=(1.0,))
    with pytest.raises(ValueError, match=r"^A classifier has no option 'topkk'\. Did you mean 'topk'\?$"):
        tetravit.predict(weights, files[0], topkk=1)
    with pytest.raises(
        ValueError, match=r"^An image is a path, a Pillow image, an array or a tensor; got int\.$"
    ):
        tetravit.predict(weights, 3)


def test_a_model_predicts_and_says_what_it_takes(weights, files):
    model = tetravit.load(weights)
    assert model.predict(files[0], topk=2).to_dict() == tetravit.predict(model, files[0], topk=2).to_dict()
    assert len(model.predict(files)) == 2
    for picture in (str(files[0]), files[0], Image.open(files[0]), files):
        with pytest.raises(
            ValueError,
            match=r"^A model takes a batch of prepared images, float \(B, 3, Hi, Wi\): "
            r"model\(model\.preprocess\(\[image\]\)\); model\.predict\(image\) takes files",
        ):
            model(picture)


def test_a_list_of_images_is_prepared_as_a_batch(weights, files):
    model = tetravit.load(weights)
    batch = model.preprocess(files)
    assert torch.equal(batch, torch.stack([model.preprocess(file) for file in files]))
    assert model(batch).shape == (2, 10)
    with pytest.raises(
        ValueError, match=r"^A batch takes images of one size after preprocessing; got an empty list\.$"
    ):
        model.preprocess([])


def test_a_home_folder_is_meant(weights, files, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "best.safetensors").symlink_to(weights)
    prediction = tetravit.predict("~/best.safetensors", "~/0.png")
    assert prediction.error is None
    assert tetravit.load("~/best.safetensors").num_classes == 10
    assert len(tetravit.predict("~/best.safetensors", "~/*.png")) == 2
    with pytest.raises(ValueError, match=r"^There is no image or folder '~/2\.png'\.$"):
        tetravit.predict("~/best.safetensors", "~/2.png")
