"""The recipes of published segmenters: settings as their authors ran them, and two steps of each."""

import json

import pytest
import torch
from task_toys import described

from tetravit.data.layouts import write_shapes
from tetravit.engine import optim
from tetravit.models import create_segmenter, family
from tetravit.recipe import list_recipes, load
from tetravit.runs import train
from tetravit.tasks import TASKS
from tetravit.weights import CHECKPOINTS
from tetravit.weights.layouts import dense_map

RECIPES = list_recipes()
NAMES = [name for name in RECIPES if load(RECIPES[name]).task.name == "segment"]
PUBLISHED = [name for name in NAMES if name.startswith(("xcit/", "twins/"))]

XCIT = [
    f"xcit_{size}_p{patch}" for size in ("tiny_12", "small_12", "small_24", "medium_24") for patch in (16, 8)
]
TWINS = [f"twins_{kind}_{size}" for kind in ("pcpvt", "svt") for size in ("small", "base", "large")]
XCIT_PARTS = ("absolute_pos_embed", "relative_position_bias_table", "norm")  # as the authors' files list them
TWINS_PARTS = ("pos_block", "norm")


def of(name, model):
    return load(RECIPES[name], [f"model.name={model}"])


def test_all_published_rows_have_a_recipe():
    assert set(PUBLISHED) == {
        f"{f}/{h}_ade20k" for f in ("xcit", "twins") for h in ("semantic_fpn", "upernet")
    }
    for row in CHECKPOINTS.values():
        if row.task == "segment":
            recipe = of(f"{family(row.model)}/{row.head}_ade20k", row.model)
            assert f"{row.model}.{recipe.model.backbone_weights}" in CHECKPOINTS
            figure = f"{row.published['miou']:.1f}"
            assert figure in RECIPES[f"{family(row.model)}/{row.head}_ade20k"].read_text()
            assert recipe.data.preprocess == row.preprocess
    assert {"gcvit/upernet_ade20k", "convit/upernet_ade20k", "deit/upernet_ade20k"} <= set(NAMES)
    for name in set(NAMES) - set(PUBLISHED) - {"shapes-seg"}:
        assert "ours" in RECIPES[name].read_text()


# fmt: off
SETTINGS = [  # recipe, models, steps, batch, rate, decay, power, warm-up, lowest rate
    ("xcit/semantic_fpn_ade20k",  XCIT,  80_000,  16, 6e-5, 0.01, 1.0, 1500, 0.0),
    ("xcit/upernet_ade20k",       XCIT,  160_000, 16, 6e-5, 0.01, 1.0, 1500, 0.0),
    ("twins/semantic_fpn_ade20k", TWINS, 80_000,  32, 1e-4, 1e-4, 0.9, 0,    1e-6),
    ("twins/upernet_ade20k",      TWINS, 160_000, 16, 6e-5, 0.01, 1.0, 1500, 0.0),
]
# fmt: on


@pytest.mark.parametrize(
    ("name", "models", "steps", "batch", "lr", "decay", "power", "warmup", "low"), SETTINGS
)
def test_schedules_are_the_authors(name, models, steps, batch, lr, decay, power, warmup, low):
    for model in models:
        recipe = of(name, model)
        wanted = 32 if (name, model) == ("twins/upernet_ade20k", "twins_pcpvt_small") else batch
        assert (recipe.steps, recipe.data.batch_size) == (steps, wanted)
        assert (recipe.optim.peak(wanted), recipe.optim.weight_decay) == (lr, decay)
        assert (recipe.optim.betas, recipe.optim.clip, recipe.optim.layer_decay) == ((0.9, 0.999), 0.0, 1.0)
        rate = recipe.optim.rate(epochs=1, steps_per_epoch=1263, batch_size=wanted, total=steps)
        for step in (0, 1, 700, 1499, 1500, 20_000, steps - 1):
            regular = (lr - low) * (1 - step / steps) ** power + low
            factor = 1 - (1 - step / warmup) * (1 - 1e-6) if step < warmup else 1.0
            assert rate(step) == pytest.approx(regular * factor, rel=1e-9)


@pytest.mark.parametrize("head", ["semantic_fpn", "upernet"])
def test_stochastic_depth_is_the_authors(head):
    rates = {m: of(f"xcit/{head}_ade20k", m).model.drop_path for m in XCIT}
    medium = 0.2 if head == "semantic_fpn" else 0.15
    assert list(rates.values()) == [0.0, 0.0, 0.05, 0.05, 0.1, 0.1, medium, medium]
    rates = {m: of(f"twins/{head}_ade20k", m).model.drop_path for m in TWINS}
    assert rates == dict.fromkeys(TWINS, 0.2) | {"twins_svt_large": 0.3}


def spared(name, model):
    """A published model on the meta device, the names that our recipe spares from decay, and their real names."""
    recipe = of(name, model)
    options = {"head": recipe.model.head, "head_options": dict(recipe.model.head_options)}
    with torch.device("meta"):
        built = create_segmenter(model, num_classes=150, **options)
        task = TASKS["segment"](built, recipe.task, described(150, "segment"))
    ours = {
        p for group in optim.groups(task, recipe.optim) if not group["weight_decay"] for p in group["params"]
    }
    names = [n for n, _ in built.named_parameters()]
    numbered = {n: torch.tensor(i) for i, n in enumerate(names)}
    theirs = dense_map(family(model), recipe.model.head).to_theirs(numbered)
    return {n for n, p in built.named_parameters() if p in ours}, {
        names[int(i)]: k for k, i in theirs.items()
    }


@pytest.mark.parametrize(
    ("name", "model", "parts", "count"),
    [
        ("xcit/upernet_ade20k", "xcit_small_12_p16", XCIT_PARTS, 72),
        ("xcit/upernet_ade20k", "xcit_medium_24_p8", XCIT_PARTS, 144),
        ("xcit/semantic_fpn_ade20k", "xcit_tiny_12_p8", XCIT_PARTS, 72),
        ("twins/upernet_ade20k", "twins_svt_small", TWINS_PARTS, 110),
        ("twins/upernet_ade20k", "twins_pcpvt_large", TWINS_PARTS, None),
        ("twins/semantic_fpn_ade20k", "twins_svt_small", (), 0),
    ],
)
def test_decay_spares_what_the_authors_lists_match(name, model, parts, count):
    """By the names in their files; ours are other names for the same tensors."""
    found, names = spared(name, model)
    want = {ours for ours, theirs in names.items() if any(part in theirs for part in parts)}
    assert found & set(names) == want
    assert count in (None, len(want))
    assert not any(n.startswith("head.") for n in found)


def test_decay_of_gcvit_spares_norms_and_tables():
    recipe = load(RECIPES["gcvit/upernet_ade20k"], ["model.name=gcvit_xxtiny"])
    with torch.device("meta"):
        model = create_segmenter("gcvit_xxtiny", num_classes=150)
    kept = optim.groups(model, recipe.optim)
    spared = {p for group in kept if not group["weight_decay"] for p in group["params"]}
    for name, parameter in model.named_parameters():
        ours = name.startswith(("backbone.", "pyramid."))
        expected = ours and ("norm" in name or name.endswith("bias.table")) and name[:13] != "backbone.norm"
        assert (parameter in spared) == expected, name


SHALLOW = {  # the smallest model of a family, cut short: everything else is as the recipe has it
    "xcit": ["model.name=xcit_nano_12_p16", "model.options={depth = 4, out_blocks = [0, 1, 2, 3]}"],
    "convit": [
        "model.name=convit_tiny",
        "model.options={depth = 4, num_gpsa = 1, out_blocks = [0, 1, 2, 3]}",
    ],
    "gcvit": [
        "model.name=gcvit_xxtiny",
        "model.options={depths = [1, 1, 1, 1], window_size = [4, 4, 4, 4]}",
    ],
    "twins": ["model.name=twins_svt_small", "model.options={depths = [1, 1, 1, 1]}"],
    "deit": ["model.name=deit_tiny", "model.options={depth = 4, out_blocks = [0, 1, 2, 3]}"],
}


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_two_steps_run(name, tmp_path):
    """On drawings in the layout of the recipe's own data, with a shallow model of its family."""
    augment = "rescale(32, 128, (0.5, 2.0)) | cut(48, 0.75) | flip | distort | fill(48)"
    changes = [
        "steps=2", "optim.warmup_steps=1", "data.batch_size=2", "data.image_size=48", "data.short=48",
        "data.longest=192", "data.workers=0", "run.device=cpu", "run.evaluate_steps=0", "run.log_steps=1",
        "model.head_options.width=16", "model.backbone_weights=", *SHALLOW[family(load(RECIPES[name]).model.name)],
    ]  # fmt: skip
    if name == "shapes-seg":
        changes.append("data.options={size = 48, count = 4}")
    else:
        list(write_shapes(tmp_path, train=4, val=2, size=56))
        changes += [f"data.root={tmp_path / 'ade20k'}", f"data.augment={augment}"]
    recipe = load(RECIPES[name], changes)
    assert train(recipe, tmp_path / "run", reporters=[]).steps == 2
    found = json.loads((tmp_path / "run" / "evaluation.json").read_text())
    assert 0 <= found["miou"] <= 1
    assert len(found["iou"]) == 9
    assert (tmp_path / "run" / "report.html").read_text().count("data:image") > 3
