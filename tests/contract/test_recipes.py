"""Every shipped recipe loads, names what exists, says where it comes from, and takes a step."""

import math
import tomllib

import pytest

from tetravit.models import create_model, family, list_models, save
from tetravit.recipe import dump, list_recipes, load, validated
from tetravit.runs import train
from tetravit.structures import Preprocess

RECIPES = list_recipes()
CLASSIFYING = ("classify", "distill")  # tasks
CLASSIFIERS = [name for name in RECIPES if load(RECIPES[name]).task.name in CLASSIFYING]


def models(name):
    """The models a recipe has a variant for, and its own."""
    table = tomllib.loads(RECIPES[name].read_text())
    return [table["model"]["name"], *table.get("variants", {})]


def test_there_are_recipes():
    assert {"digits", "finetune", "xcit/imagenet", "gcvit/imagenet", "transfer/cars"} <= set(RECIPES)


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


SHALLOW = {  # the smallest model of a family, cut short: everything else is as the recipe has it
    "xcit": ["model.name=xcit_nano_12_p16", "model.options.depth=1"],
    "convit": ["model.name=convit_tiny", "model.options={depth = 2, num_gpsa = 1}"],
    "gcvit": ["model.name=gcvit_xxtiny", "model.options={depths = [1, 1, 1, 1]}"],
    "twins": ["model.name=twins_svt_small", "model.options={depths = [1, 1, 1, 1]}"],
    "deit": ["model.name=deit_tiny", "model.options.depth=1"],
}


def teacher(path, num_classes):
    model = create_model("deit_tiny", num_classes=num_classes, image_size=32, depth=1)
    model.input = Preprocess(size=32)
    save(model, path)
    return [f"task.teacher={path}", "task.teacher_weights=", "task.teacher_size=32"]


QUICK = {"digits", "finetune"}  # the others, at a second each, run with the slow tests


@pytest.mark.parametrize("faithful", ["false", "true"])
@pytest.mark.parametrize(
    "name", [n if n in QUICK else pytest.param(n, marks=pytest.mark.slow) for n in CLASSIFIERS]
)
def test_two_steps_run(name, faithful, tmp_path, lay_out):
    """On a tiny data set in the layout of the recipe's own, with a shallow model of its family."""
    whole = load(RECIPES[name])
    if faithful == "true" and not name.endswith("imagenet"):
        pytest.skip("the switch is tried on one recipe of each family")
    changes = [
        "epochs=1", "scale_epochs=false", "optim.warmup_epochs=0", "optim.cooldown_epochs=0",
        f"optim.faithful={faithful}", "data.batch_size=4", "data.image_size=32", "data.workers=0",
        "run.device=cpu", "model.weights=", *SHALLOW[family(whole.model.name)],
    ]  # fmt: skip
    if whole.model.name.endswith("_distilled"):
        changes.append("model.name=deit_tiny_distilled")
    if whole.data.name == "digits":
        changes.append("data.options.fraction=0.006")  # one scan of each class
    else:
        classes = lay_out(whole.data.name, tmp_path)
        changes.append(f"data.root={tmp_path}")
        if "fraction" in whole.data.options:
            changes.append("data.options.fraction=1.0")
        if whole.data.name == "imagenet":
            changes.append("data.name=image_folder")  # the same layout without its thousand classes
        if whole.task.name == "distill":
            changes += teacher(tmp_path / "teacher.safetensors", classes)
    recipe = load(RECIPES[name], changes)
    assert train(recipe, tmp_path / "run", reporters=[]).steps == 2


def test_a_fraction_stretches_the_run():
    file = RECIPES["convit/sample_efficiency"]
    for fraction, epochs in ((0.05, 6000), (0.1, 3000), (0.3, 1000), (0.5, 600), (1.0, 300)):
        assert load(file, [f"data.options.fraction={fraction}"]).total_epochs(7) == epochs


@pytest.mark.parametrize(
    ("name", "model", "batch", "peak", "epochs", "drop_path"),
    [
        ("convit/imagenet", "convit_base", 1024, 1e-3, 300, 0.1),
        ("convit/imagenet", "convit_small_plus", 512, 4e-4, 300, 0.1),
        ("convit/cifar100", "convit_tiny_plus", 512, 4e-4, 3000, 0.1),
        ("gcvit/imagenet", "gcvit_tiny2", 4096, 5e-3, 320, 0.25),
        ("gcvit/imagenet", "gcvit_base", 1024, 5e-3, 320, 0.5),
        ("twins/imagenet", "twins_pcpvt_small", 1280, 1.25e-3, 300, 0.2),
        ("twins/imagenet", "twins_svt_small", 2048, 2e-3, 300, 0.2),
        ("twins/imagenet", "twins_svt_large", 1024, 1e-3, 300, 0.5),
        ("xcit/imagenet_distilled", "xcit_medium_24_p8", 1024, 1e-3, 400, 0.15),
        ("xcit/imagenet_384", "xcit_small_12_p8", 512, 5e-6, 30, 0.05),
        ("transfer/cifar10", "xcit_small_12_p16", 768, 0.01, 1000, 0.0),
        ("transfer/inat18", "xcit_small_12_p16", 768, 7.5e-5, 360, 0.1),
    ],
)
def test_what_the_sources_say(name, model, batch, peak, epochs, drop_path):
    recipe = load(RECIPES[name], [f"model.name={model}"])
    assert (recipe.data.batch_size, recipe.total_epochs(7)) == (batch, epochs)
    assert recipe.model.drop_path == drop_path
    assert recipe.optim.peak(batch) == pytest.approx(peak)


def test_the_faithful_rates_of_the_recipes():
    """The first epochs of XCiT as its authors' log shows them, and the end of GC ViT's."""
    xcit = load(RECIPES["xcit/imagenet"], ["optim.faithful=true"])
    rate = xcit.optim.rate(epochs=400, steps_per_epoch=1251, batch_size=1024)
    found = [f"{rate(1251 * epoch + 7):.1e}" for epoch in range(7)]
    assert found == ["1.0e-06", "1.0e-06", "2.0e-04", "4.0e-04", "6.0e-04", "8.0e-04", "1.0e-03"]
    gcvit = load(RECIPES["gcvit/imagenet"], ["optim.faithful=true"])
    rate = gcvit.optim.rate(epochs=320, steps_per_epoch=312, batch_size=4096)
    assert rate(0) == 1e-6
    assert rate(310 * 312 - 1) > rate(310 * 312) == rate(320 * 312 - 1) == 5e-6
    assert rate(20 * 312) < 5e-3  # the warm-up counts, so the peak is never reached


# The schedules that the sources publish: epochs, warm-up and cooldown epochs, peak, lowest rate, all from 1e-6 on.
# fmt: off
SCHEDULES = {
    ("xcit/imagenet", None):                     (400, 5, 0, 1e-3, 1e-5),
    ("xcit/imagenet_distilled", None):           (400, 5, 0, 1e-3, 1e-5),
    ("xcit/imagenet_384", None):                 (30, 5, 0, 5e-6, 5e-6),
    ("convit/imagenet", None):                   (300, 5, 0, 1e-3, 1e-5),
    ("convit/imagenet", "convit_tiny_plus"):     (300, 5, 0, 4e-4, 1e-5),
    ("convit/imagenet", "convit_small_plus"):    (300, 5, 0, 4e-4, 1e-5),
    ("convit/imagenet", "convit_base_plus"):     (300, 5, 0, 4e-4, 1e-5),
    ("convit/sample_efficiency", None):          (3000, 5, 0, 1e-3, 1e-5),
    ("convit/cifar100", None):                   (3000, 5, 0, 4e-4, 1e-5),
    ("deit/imagenet_distilled", None):           (300, 5, 0, 1e-3, 1e-5),
    ("gcvit/imagenet", None):                    (320, 20, 10, 5e-3, 5e-6),
    ("twins/imagenet", None):                    (300, 5, 0, 1e-3, 1e-5),
    ("twins/imagenet", "twins_pcpvt_small"):     (300, 5, 0, 1.25e-3, 1e-5),
    ("twins/imagenet", "twins_svt_small"):       (300, 5, 0, 2e-3, 1e-5),
    ("twins/imagenet", "twins_svt_large"):       (300, 20, 0, 1e-3, 1e-5),
    ("transfer/cifar10", None):                  (1000, 5, 0, 1e-2, 1e-5),
    ("transfer/cifar100", None):                 (1000, 5, 0, 1e-2, 1e-5),
    ("transfer/flowers", None):                  (1000, 5, 0, 1e-2, 1e-5),
    ("transfer/cars", None):                     (1000, 5, 0, 1e-2, 1e-5),
    ("transfer/inat18", None):                   (360, 5, 0, 7.5e-5, 1e-5),
    ("transfer/inat19", None):                   (360, 5, 0, 7.5e-5, 1e-5),
}
# fmt: on
OURS = {"gcvit/imagenet21k", "gcvit/finetune_384_512"}  # the authors published no schedule
PER_EPOCH = 3  # steps


def published_rates(release, epochs, warmup, cooldown, peak, lowest):
    """The rate of every step as the authors' code sets it, by the formulas of its schedulers."""

    def at(t, span, warmup):
        if t < warmup:
            return 1e-6 + t * (peak - 1e-6) / warmup
        return lowest + 0.5 * (peak - lowest) * (1 + math.cos(math.pi * t / span)) if t < span else lowest

    if release == "gcvit":  # by step; the epochs at the end are beyond the cosine
        span = (epochs - cooldown) * PER_EPOCH
        return [at(t, span, warmup * PER_EPOCH) for t in range(epochs * PER_EPOCH)]
    # By epoch: set after it, with its own number, so that the first two run at the start.
    by_epoch = [at(max(0, epoch - 1), epochs, warmup) for epoch in range(epochs)]
    return [rate for rate in by_epoch for _ in range(PER_EPOCH)]


def test_every_published_procedure_of_a_classifier_has_its_schedule_here():
    procedures = {name for name in CLASSIFIERS if "/" in name}
    assert procedures == {name for name, _ in SCHEDULES} | OURS


@pytest.mark.parametrize("name", sorted({name for name, _ in SCHEDULES}))
def test_the_rates_of_a_faithful_recipe_are_the_published_ones(name):
    """Every step of every variant."""
    for model in models(name):
        recipe = load(RECIPES[name], [f"model.name={model}", "optim.faithful=true"])
        epochs, *rest = SCHEDULES.get((name, model)) or SCHEDULES[name, None]
        assert recipe.total_epochs(PER_EPOCH) == epochs
        rate = recipe.optim.rate(epochs=epochs, steps_per_epoch=PER_EPOCH, batch_size=recipe.data.batch_size)
        found = [rate(step) for step in range(epochs * PER_EPOCH)]
        assert found == pytest.approx(published_rates(recipe.optim.release, epochs, *rest), rel=1e-12)


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
