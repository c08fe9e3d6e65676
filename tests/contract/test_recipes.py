"""Every shipped recipe loads, names what exists, says where it comes from, and takes a step."""

import tomllib

import pytest

from tetravit.models import list_models
from tetravit.recipe import dump, list_recipes, load, validated
from tetravit.train import train

RECIPES = list_recipes()


def models(name):
    """The models a recipe has a variant for, and its own."""
    table = tomllib.loads(RECIPES[name].read_text())
    return [table["model"]["name"], *table.get("variants", {})]


def test_there_are_recipes():
    assert {"digits", "xcit/imagenet"} <= set(RECIPES)


@pytest.mark.parametrize("name", RECIPES)
def test_every_variant_loads_and_is_read_back(name, tmp_path):
    for model in models(name):
        assert model in list_models()
        recipe = load(RECIPES[name], [f"model.name={model}"])
        assert recipe.model.name == model
        assert validated(tomllib.loads(dump(recipe))) == recipe


@pytest.mark.parametrize("name", RECIPES)
def test_the_head_of_the_file_is_its_manual(name):
    text = RECIPES[name].read_text()
    head = text[: text.index("\n\n")]
    assert f"tetravit train {name}" in head
    assert "eported" in head
    assert text.isascii()


@pytest.mark.parametrize("name", RECIPES)
def test_a_step_runs(name, tmp_path):
    """On synthetic images with a shallow model, everything else as the recipe has it."""
    changes = [
        "epochs=1", "optim.warmup_epochs=0", "data.name=synthetic", "data.batch_size=8", "data.image_size=32",
        "data.options={num_classes = 4, size = 8, image_size = 32}", "data.workers=0", "run.device=cpu",
    ]  # fmt: skip
    if "depth" not in load(RECIPES[name]).model.options:
        changes += ["model.name=xcit_nano_12_p16", "model.options.depth=1"]
    recipe = load(RECIPES[name], changes)
    assert train(recipe, tmp_path / "run", reporters=[]).steps == 1


def test_the_source_of_xcit():
    recipe = load(RECIPES["xcit/imagenet"])
    assert recipe.epochs == 400
    assert recipe.optim.peak(recipe.data.batch_size) == pytest.approx(1e-3)
    rates = {
        m: load(RECIPES["xcit/imagenet"], [f"model.name={m}"]).model.drop_path
        for m in models("xcit/imagenet")
    }
    assert rates["xcit_small_12_p16"] == 0.05
    assert rates["xcit_medium_24_p8"] == 0.15
    assert rates["xcit_large_24_p8"] == 0.3
    assert len(rates) == 14
