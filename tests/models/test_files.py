"""A model file needs nothing else."""

import argparse
import re

import pytest
import torch
from authors import golden

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
    header = Header(model="xcit_nano_12_p16", num_classes=4, options={"depth": 3})
    save_tensors(path, model.state_dict(), header)
    with pytest.raises(BadFile) as error:
        tetravit.load(path)
    expected = f"{path} does not fit (ours): missing: 'backbone.blocks.2.gamma1', "
    assert str(error.value).startswith(expected)


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
    (tmp_path / "recipe.toml").touch()
    for source, message in (
        (
            str(tmp_path / "no.safetensors"),
            f"No checkpoint named {str(tmp_path / 'no.safetensors')!r}, and no such file or run folder."
            " A run folder is made by `tetravit train RECIPE`; `tetravit list weights` shows published names.",
        ),
        (
            tmp_path,
            f"{tmp_path} holds neither best.safetensors nor last.safetensors: this run has no weights yet.",
        ),
        (
            "xcit_nano",
            "No checkpoint named 'xcit_nano', and no such file or run folder. Did you mean 'xcit_nano_12_p8.in1k'?",
        ),
    ):
        with pytest.raises(ValueError) as error:
            tetravit.load(source)
        assert str(error.value) == message


@pytest.mark.slow
def test_weights_of_the_authors_load_by_file(tmp_path):
    authors = golden("xcit_nano_12_p16")
    path = tmp_path / "xcit.pth"
    torch.save({"model": authors.state(), "args": argparse.Namespace(lr=1.0)}, path)
    model = create_model("xcit_nano_12_p16", weights=path).eval()
    size = authors.sizes[0]
    with torch.no_grad():
        logits = model(authors.images(size))
    torch.testing.assert_close(logits, authors.answer("logits", size), atol=5e-5, rtol=0)
    assert model.report.matched == model.report.total
    fresh = create_model("xcit_nano_12_p16", weights=path, num_classes=10)
    assert fresh.report.missing == ["head.weight (fresh)", "head.bias (fresh)"]
    with pytest.raises(ValueError) as error:
        tetravit.load(path)
    (tmp_path / "notes.md").write_text("no weights")
    with pytest.raises(ValueError, match=r"notes\.md cannot be read: it is no pickle, or a damaged one"):
        tetravit.load(tmp_path / "notes.md")
    said = f"{path} has no model name in it; give it: create_model(NAME, weights={str(path)!r})."
    assert str(error.value) == said


def test_weights_are_named_once(tmp_path):
    with pytest.raises(ValueError) as error:
        create_model("xcit_nano_12_p16.in1k", weights="in1k_dist")
    assert str(error.value) == "Weights are named once: xcit_nano_12_p16.in1k, or weights=...; got both."


def test_a_wrong_tag_lists_the_published_ones():
    with pytest.raises(ValueError) as error:
        create_model("xcit_nano_12_p16", weights="in22k")
    assert str(error.value).startswith(
        "No checkpoint named 'in22k' for xcit_nano_12_p16, and no such file. Published for xcit_nano_12_p16: in1k"
    )


def test_a_replaced_head_is_not_saved(model, tmp_path):
    model.head = torch.nn.Linear(model.backbone.embed_dim, 7)
    with pytest.raises(ValueError) as error:
        save(model, tmp_path / "x.safetensors")
    assert str(error.value) == (
        "model.head is not what xcit_nano_12_p16 with 3 classes has: 'head.weight' is (7, 128), expected (3, 128);"
        " model.reset_head(N) changes the number of classes."
    )
    assert not list(tmp_path.iterdir())
    model.head = torch.nn.Sequential(torch.nn.Linear(128, 3))
    with pytest.raises(ValueError, match=r"'head.0.weight' is \(3, 128\), expected none"):
        save(model, tmp_path / "x.safetensors")
    model.reset_head(7)
    save(model, tmp_path / "x.safetensors")
    assert tetravit.load(tmp_path / "x.safetensors").num_classes == 7


def test_other_replaced_parts_are_named(model, tmp_path):
    model.backbone.blocks = model.backbone.blocks[:1]
    with pytest.raises(ValueError, match=r"^model.backbone is not what xcit_nano_12_p16 with 3 classes has"):
        save(model, tmp_path / "x.safetensors")
    model.name = ""
    with pytest.raises(ValueError, match=r"^A model is saved with the name that builds it"):
        save(model, tmp_path / "x.safetensors")


def test_load_never_drops_a_tensor(model, tmp_path):
    """A file whose header gives another number of classes than its tensors have: written by another program."""
    state = {**model.state_dict(), "head.weight": torch.ones(7, 128), "head.bias": torch.ones(7)}
    header = Header(model="xcit_nano_12_p16", num_classes=5, options=model.options)
    save_tensors(tmp_path / "x.safetensors", state, header)
    loaded = tetravit.load(tmp_path / "x.safetensors")
    assert torch.equal(loaded.head.weight, torch.ones(7, 128))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_a_fresh_head_has_the_type_and_device_of_the_model(dtype):
    model = create_model("xcit_nano_12_p16", num_classes=3, depth=2).to(dtype).eval()
    model.reset_head(7)
    assert not model.head.training
    assert model(torch.randn(1, 3, 64, 64, dtype=dtype)).dtype == dtype
    model.to("meta").reset_head(2)
    assert model.head.weight.is_meta


class Doubled(torch.nn.Linear):
    def forward(self, x):
        return 2 * super().forward(x)


def test_a_module_with_another_forward_pass_is_not_saved(model, tmp_path):
    dim = model.backbone.embed_dim
    model.head = torch.nn.Linear(dim, model.num_classes)  # the same layer as ours
    save(model, tmp_path / "m.safetensors")
    model.head = Doubled(dim, model.num_classes)
    with pytest.raises(ValueError) as error:
        save(model, tmp_path / "n.safetensors")
    assert str(error.value) == (
        f"model.head is a Doubled; {model.name} has a LinearHead there. A file holds tensors alone: the loaded model"
        " would compute something else."
    )
    assert not (tmp_path / "n.safetensors").exists()


def test_names_of_another_number_of_classes_are_not_saved(model, tmp_path):
    model.class_names = ("a",) * (model.num_classes + 1)
    with pytest.raises(ValueError) as error:
        save(model, tmp_path / "m.safetensors")
    assert str(error.value) == (
        f"The model has {model.num_classes} classes and {model.num_classes + 1} class_names; set one name per class,"
        " or none: ()."
    )


@pytest.mark.parametrize(
    "read", [tetravit.load, lambda file: tetravit.create_model("xcit_nano_12_p16", weights=file)]
)
def test_a_truncated_file_says_so(tmp_path, read):
    file = tmp_path / "a.safetensors"
    save(tetravit.create_model("xcit_nano_12_p16", num_classes=2, depth=1), file)
    whole = file.stat().st_size
    file.write_bytes(file.read_bytes()[:-9])
    text = (
        f"{file} is truncated: {whole - 9} bytes on disk, {whole} by its header; copy or download it again."
    )
    with pytest.raises(ValueError, match=f"^{re.escape(text)}$"):
        read(file)
