"""A model file needs nothing else."""

import pytest
import torch

import tetravit
from tetravit.models import create_model, save
from tetravit.weights.fileformat import BadFile, Header
from tetravit.weights.fileformat import save as save_tensors


@pytest.fixture
def model():
    model = create_model("xcit_nano_12_p16", num_classes=3, image_size=64, depth=2).eval()
    model.class_names = ("ant", "bee", "cat")
    return model


def test_a_saved_model_answers_the_same(model, tmp_path):
    save(model, tmp_path / "best.safetensors", recipe="epochs = 1\n", licence="Apache-2.0")
    images = torch.randn(2, 3, 64, 80)
    for source in (tmp_path / "best.safetensors", tmp_path, str(tmp_path)):
        loaded = tetravit.load(source)
        assert not loaded.training
        assert loaded.class_names == ("ant", "bee", "cat")
        assert loaded.input == model.input
        with torch.no_grad():
            assert torch.equal(loaded(images), model(images))
    loaded.train()(images).sum().backward()
    assert loaded.head.weight.grad is not None


def test_a_picture_becomes_what_the_weights_expect(model):
    assert model.preprocess(torch.zeros(3, 100, 90, dtype=torch.uint8)).shape == (3, 64, 64)


def test_the_tensors_of_another_model_are_refused(model, tmp_path):
    path = tmp_path / "x.safetensors"
    header = Header(model="xcit_nano_12_p16", num_classes=4, options={"depth": 2})
    save_tensors(path, model.state_dict(), header)
    with pytest.raises(BadFile) as error:
        tetravit.load(path)
    expected = f"{path} does not hold a xcit_nano_12_p16: 2 tensors differ, the first 'head.bias'."
    assert str(error.value) == expected


def test_a_model_this_version_does_not_know(model, tmp_path):
    path = tmp_path / "x.safetensors"
    save_tensors(path, model.state_dict(), Header(model="xcit_nano_13_p16"))
    with pytest.raises(BadFile) as error:
        tetravit.load(path)
    assert str(error.value) == (
        f"{path} names a model that this version cannot build: "
        "Unknown model 'xcit_nano_13_p16'. Did you mean 'xcit_nano_12_p16'?"
    )


def test_what_cannot_be_loaded(tmp_path):
    for source, message in (
        (
            str(tmp_path / "no.safetensors"),
            f"There is no file or run folder {str(tmp_path / 'no.safetensors')!r}.",
        ),
        (
            tmp_path,
            f"{tmp_path} holds no best.safetensors; name the folder of a run that has evaluated once.",
        ),
        (
            "xcit_nano",
            "There is no file, run folder or published model 'xcit_nano'. Did you mean 'xcit_nano_12_p8'?",
        ),
    ):
        with pytest.raises(ValueError) as error:
            tetravit.load(source)
        assert str(error.value) == message
