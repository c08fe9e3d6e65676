"""The recipes of published detectors: settings as their authors ran them, and two steps of each."""

import json

import pytest
import torch
from task_toys import START, described

from tetravit.data.layouts import write_shapes
from tetravit.engine import optim
from tetravit.models import create_detector, family
from tetravit.recipe import list_recipes, load
from tetravit.runs import train
from tetravit.structures import COCO_INPUT
from tetravit.tasks import TASKS
from tetravit.weights import CHECKPOINTS
from tetravit.weights.layouts import dense_map

RECIPES = list_recipes()
NAMES = [name for name in RECIPES if load(RECIPES[name]).task.name == "detect"]
XCIT = [
    f"xcit_{size}_p{patch}" for size in ("tiny_12", "small_12", "small_24", "medium_24") for patch in (16, 8)
]
TWINS = [f"twins_{kind}_{size}" for kind in ("pcpvt", "svt") for size in ("small", "base", "large")]
GCVIT = ["gcvit_tiny", "gcvit_small", "gcvit_base"]
XCIT_PARTS = ("absolute_pos_embed", "relative_position_bias_table", "norm")  # as the authors' files list them
TWINS_PARTS = ("pos_block", "norm")
ONCE, SCALES = "fit(800, 1333) | flip", "flip | multiscale"

# fmt: off
SETTINGS = {  # models, head, epochs, falls, rate, decay, warm-up, precision, augmentation, what is spared
    "twins/retinanet_coco":    (TWINS, "retinanet", 12, (8, 11),  1e-4, 1e-4, 500,  "float32", ONCE,   ()),
    "twins/retinanet_coco_3x": (TWINS, "retinanet", 36, (27, 33), 1e-4, 0.05, 500,  "float32", SCALES, TWINS_PARTS),
    "twins/mask_rcnn_coco":    (TWINS, "mask_rcnn", 12, (8, 11),  2e-4, 1e-4, 500,  "float32", ONCE,   ()),
    "twins/mask_rcnn_coco_3x": (TWINS, "mask_rcnn", 36, (27, 33), 1e-4, 0.05, 500,  "fp16",    SCALES, TWINS_PARTS),
    "xcit/mask_rcnn_coco":     (XCIT,  "mask_rcnn", 36, (27, 33), 1e-4, 0.05, 500,  "fp16",    SCALES, XCIT_PARTS),
    "gcvit/mask_rcnn_coco":    (GCVIT, "mask_rcnn", 36, (27, 33), 1e-4, 0.05, 2500, "fp16",    SCALES,
                                ("rpb", "norm")),
    "gcvit/cascade_coco":      (GCVIT, "cascade",   36, (27, 33), 1e-4, 0.05, 2500, "float32", SCALES,
                                ("relative_position_bias_table", "norm")),
}
# fmt: on
DETR = {
    "gcvit/dino_coco": 12,
    "gcvit/dino_coco_3x": 36,
    "twins/dino_coco": 12,
    "xcit/dino_coco": 12,
}  # epochs
CASES = [(name, model) for name, row in SETTINGS.items() for model in row[0]]


def of(name, model):
    return load(RECIPES[name], [f"model.name={model}"])


def test_all_published_rows_have_a_recipe():
    assert set(NAMES) == {*SETTINGS, *DETR, "shapes-det", "shapes-detr"}
    for row in CHECKPOINTS.values():
        if row.task == "detect":
            name = f"{family(row.model)}/{row.head}_coco"
            recipe = of(name, row.model)
            assert f"{row.model}.{recipe.model.backbone_weights}" in CHECKPOINTS
            figures = f"{row.published['box_ap']:.1f}  {row.published['mask_ap']:.1f}"
            assert figures in RECIPES[name].read_text()
            assert recipe.data.preprocess == row.preprocess


@pytest.mark.parametrize(("name", "model"), CASES)
def test_settings_are_the_authors(name, model):
    _, head, epochs, falls, lr, decay, warmup, precision, augment, _ = SETTINGS[name]
    recipe = of(name, model)
    assert (recipe.epochs, recipe.model.head, recipe.run.precision) == (epochs, head, precision)
    assert (recipe.data.batch_size, recipe.data.group, recipe.data.augment) == (16, 2, augment)
    assert recipe.data.preprocess == COCO_INPUT
    assert (recipe.optim.peak(16), recipe.optim.weight_decay) == (lr, decay)
    assert (recipe.optim.betas, recipe.optim.clip, recipe.optim.layer_decay) == ((0.9, 0.999), 0.0, 1.0)
    steps = 7330
    rate = recipe.optim.rate(epochs=epochs, steps_per_epoch=steps, batch_size=16, total=epochs * steps)
    for step in (
        0,
        1,
        499,
        500,
        2499,
        2500,
        8 * steps - 1,
        8 * steps,
        27 * steps,
        33 * steps - 1,
        33 * steps,
    ):
        regular = lr * 0.1 ** sum(step >= fall * steps for fall in falls)
        factor = 1 - (1 - step / warmup) * (1 - 1e-3) if step < warmup else 1.0
        assert rate(step) == pytest.approx(regular * factor, rel=1e-9)


@pytest.mark.parametrize(("name", "epochs"), DETR.items())
def test_settings_of_dino_detr_are_the_authors(name, epochs):
    recipe = load(RECIPES[name])
    assert (recipe.epochs, recipe.model.head, recipe.run.precision) == (epochs, "dino_detr", "float32")
    assert (recipe.data.batch_size, recipe.data.augment, recipe.data.preprocess) == (16, SCALES, COCO_INPUT)
    assert (recipe.optim.peak(16), recipe.optim.weight_decay, recipe.optim.clip) == (1e-4, 1e-4, 0.1)
    steps, fall = 7330, {12: 11, 36: 30}[epochs]
    rate = recipe.optim.rate(epochs=epochs, steps_per_epoch=steps, batch_size=16, total=epochs * steps)
    assert [rate(step) for step in (0, fall * steps - 1, fall * steps)] == pytest.approx([1e-4, 1e-4, 1e-5])
    with torch.device("meta"):
        built = create_detector(recipe.model.name, head="dino_detr")
        task = TASKS["detect"](built, recipe.task, described(80, "detect"))
    groups = optim.groups(task, recipe.optim)
    assert {g["weight_decay"] for g in groups} == {1e-4}
    slow = {p for g in groups if g["scale"] == 0.1 for p in g["params"]}
    assert slow == {p for n, p in built.named_parameters() if n.startswith("backbone.") and p.requires_grad}
    assert {p for g in groups if g["scale"] == 1.0 for p in g["params"]} >= set(built.head.parameters())


def test_large_models_of_gcvit_recompute():
    models = ("gcvit_tiny", "gcvit_small", "gcvit_base", "gcvit_large")
    recipes = [of("gcvit/dino_coco", model) for model in models]
    assert [recipe.task.recompute for recipe in recipes] == ["off", "off", "backbone", "backbone"]
    assert recipes[3].model.backbone_weights == "in21k_in1k"


def test_stochastic_depth_is_the_authors():
    rates = [of("xcit/mask_rcnn_coco", m).model.drop_path for m in XCIT]
    assert rates == [0.0, 0.0, 0.05, 0.05, 0.1, 0.1, 0.15, 0.15]
    others = [(name, m) for name, m in CASES if not name.startswith("xcit")]
    assert {of(name, m).model.drop_path for name, m in others} == {0.2}


@pytest.mark.parametrize(("name", "model"), [(name, row[0][0]) for name, row in SETTINGS.items()] + [
    ("xcit/mask_rcnn_coco", "xcit_medium_24_p8"), ("twins/mask_rcnn_coco_3x", "twins_svt_base"),
])  # fmt: skip
def test_decay_spares_what_the_authors_lists_match(name, model):
    """By the names in their files; ours are other names for the same tensors."""
    recipe, parts = of(name, model), SETTINGS[name][-1]
    with torch.device("meta"):
        built = create_detector(model, head=recipe.model.head)
        task = TASKS["detect"](built, recipe.task, described(80, "detect"))
    free = {p for g in optim.groups(task, recipe.optim) if not g["weight_decay"] for p in g["params"]}
    names = [n for n, p in built.named_parameters() if p.requires_grad]
    numbered = {n: torch.full((9, 1), i) for i, n in enumerate(names)}  # shaped like a table of windows of 2
    theirs = dense_map(family(model), recipe.model.head).to_theirs(numbered)
    theirs = {
        k: int(i.flatten()[0]) for k, i in theirs.items() if not k.endswith("position_index")
    }  # derived
    assert len(theirs) == len(names)
    wanted = {names[i] for k, i in theirs.items() if any(part in k for part in parts)}
    assert {n for n, p in built.named_parameters() if p in free} == wanted
    assert len(wanted) == {"xcit_tiny_12_p16": 72, "xcit_medium_24_p8": 144}.get(model, len(wanted))
    assert bool(wanted) == bool(parts)
    assert not any(n.startswith("head.") for n in wanted)


SHORT = {  # every family, cut short but with each kind of its blocks
    "xcit_nano_12_p16": {"depth": 4, "out_blocks": (0, 1, 2, 3)},
    "gcvit_xxtiny": {"depths": (2, 2, 2, 2), "window_size": (4, 4, 4, 4)},
    "twins_svt_small": {"depths": (2, 2, 2, 2)},
    "twins_pcpvt_small": {"depths": (1, 1, 1, 1)},
    "deit_tiny": {"depth": 4, "out_blocks": (0, 1, 2, 3)},
    "convit_tiny": {"depth": 4, "num_gpsa": 2, "out_blocks": (0, 1, 2, 3)},
}


@pytest.mark.slow
@pytest.mark.parametrize("head", ["retinanet", "mask_rcnn"])
@pytest.mark.parametrize("model", SHORT)
def test_the_loss_reaches_every_parameter_that_trains(model, head):
    """Ranks that average gradients wait for each of them."""
    built = create_detector(model, head=head, num_classes=3, head_options={"width": 16}, **SHORT[model])
    task = TASKS["detect"](built, TASKS["detect"].Config(name="detect"), described(3, "detect"))
    task.step(task.example(1, 64), START)["loss"].backward()
    assert [n for n, p in built.named_parameters() if p.requires_grad and p.grad is None] == []


SHALLOW = {  # the smallest model of a family, cut short: everything else is as the recipe has it
    "xcit": ["model.name=xcit_nano_12_p16", "model.options={depth = 4, out_blocks = [0, 1, 2, 3]}"],
    "gcvit": ["model.name=gcvit_xxtiny", "model.options={depths = [1, 1, 1, 1], window_size = [4, 4, 4, 4]}"],
    "twins": ["model.name=twins_svt_small", "model.options={depths = [1, 1, 1, 1]}"],
}


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_two_steps_run(name, tmp_path):
    """On drawings in the layout of COCO, with a shallow model of the family."""
    recipe = load(RECIPES[name])
    small = {"flip | multiscale": "flip | multiscale((48, 64), 96, (40, 48), (32, 48))"}
    augment = small.get(recipe.data.augment, "fit(48, 96) | flip")
    changes = [
        "optim.warmup_steps=1", "data.batch_size=2", "data.short=48", "data.longest=96",
        "data.workers=0", "run.device=cpu", "run.log_steps=1", "model.head_options.width=16",
        "model.backbone_weights=", *SHALLOW[family(recipe.model.name)],
    ]  # fmt: skip
    if recipe.model.head == "dino_detr":
        options = ("width=64", "num_queries=20", "num_denoising=4")  # 2 channels in a group of GroupNorm
        changes += [f"model.head_options.{option}" for option in options]
    elif recipe.model.head != "retinanet":
        changes += ["model.head_options.num_samples=16", "model.head_options.num_candidates=50"]
    if name in ("shapes-det", "shapes-detr"):
        changes += ["data.options={size = 64, count = 4}", "steps=2"]
    else:
        list(write_shapes(tmp_path, train=4, val=2, size=64))
        changes += [
            f"data.root={tmp_path / 'coco'}",
            f"data.augment={augment}",
            "epochs=1",
            "optim.milestones=[]",
        ]
    assert train(load(RECIPES[name], changes), tmp_path / "run", reporters=[]).steps == 2
    found = json.loads((tmp_path / "run" / "evaluation.json").read_text())
    assert 0 <= found["box_ap"] <= 1
    assert ("mask_ap" in found) == (recipe.model.head not in ("retinanet", "dino_detr"))
    assert len(found["classes"]) == 8
    assert (tmp_path / "run" / "report.html").read_text().count("data:image") > 3
