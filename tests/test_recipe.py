"""Recipes: read, override, check, write. Every message word for word."""

import tomllib
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tetravit.recipe import Recipe, describe, dump, entries, find, list_recipes, load, loads, validated
from tetravit.tasks import TASKS

BASE = """
epochs = 3
[task]
name = "classify"
[model]
name = "xcit_nano_12_p16"
[data]
name = "synthetic"
batch_size = 8
[optim]
warmup_epochs = 1
"""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "mine.toml"
    path.write_text(BASE)
    return path


def test_a_file_is_read_with_every_default(file):
    recipe = load(file)
    assert (recipe.epochs, recipe.model.name, recipe.data.batch_size) == (3, "xcit_nano_12_p16", 8)
    assert recipe.optim.betas == (0.9, 0.999)
    assert recipe.run.seed == 0
    assert recipe.task.loss == "cross_entropy"


def test_dump_reads_back_to_an_equal_recipe(file, tmp_path):
    recipe = load(
        file, ["data.root=/some where", "model.drop_path=0.1", "model.options.depth=2", "data.workers=2"]
    )
    again = tmp_path / "again.toml"
    again.write_text(dump(recipe))
    assert load(again) == recipe


def test_a_recipe_made_in_python_equals_one_that_was_read(file):
    recipe = load(file)
    made = Recipe(
        epochs=3,
        task={"name": "classify"},
        model={"name": "xcit_nano_12_p16"},
        data={"name": "synthetic", "batch_size": 8},
        optim={"warmup_epochs": 1},
    )
    assert made == recipe


@pytest.mark.parametrize(
    ("override", "value"),
    [
        ("optim.lr=1e-3", 1e-3),
        ("optim.lr=1", 1.0),
        ("epochs=7", 7),
        ("data.root=/data/imagenet", "/data/imagenet"),
        ("data.root=s3://bucket/x", "s3://bucket/x"),
        ("data.root=~/x", str(Path("~/x").expanduser())),
        ("data.root=1e5", str(Path("1e5").absolute())),
        ("model.weights=1e5", "1e5"),
        ("model.weights=true", "true"),
        ("run.device=0", "0"),
        ("data.root=2024", str(Path("2024").absolute())),
        ("data.augment=crop(32) | flip", "crop(32) | flip"),
        ('data.augment="crop(32)"', "crop(32)"),
        ("optim.betas=[0.8, 0.9]", (0.8, 0.9)),
        ("data.workers=auto", "auto"),
        ("task.label_smoothing = 0.1", 0.1),
        ("model.options={depth = 2}", {"depth": 2}),
        ("model.name=xcit_tiny_12_p8", "xcit_tiny_12_p8"),
    ],
)
def test_overrides_are_toml_values_or_bare_strings(file, override, value):
    found = load(file, [override])
    for key in override.partition("=")[0].strip().split("."):
        found = getattr(found, key)
    assert found == value


def test_files_that_are_there_are_named_from_the_root(file, monkeypatch):
    """So that a run can be resumed and scored from any folder."""
    folder = file.parent
    monkeypatch.chdir(folder)
    monkeypatch.setenv("HOME", str(folder))
    for name in ("a.safetensors", "names.txt"):
        (folder / name).write_text("")
    changes = ["model.weights=a.safetensors", "data.name=image_folder", "data.options.names=~/names.txt"]
    recipe = load(file, changes)
    assert recipe.model.weights == str(folder / "a.safetensors")
    assert recipe.data.options == {"names": str(folder / "names.txt")}
    assert load(file, ["model.weights=in1k"]).model.weights == "in1k"
    assert find("~/mine.toml") == file


def test_a_recipe_may_have_a_byte_order_mark(file):
    plain = load(file)
    file.write_text(f"\ufeff{BASE}", encoding="utf-8")
    assert load(file) == plain


def test_the_last_override_counts(file):
    assert load(file, ["epochs=4", "epochs=5"]).epochs == 5


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["optim.lrr=1"], "Unknown recipe key 'optim.lrr'. Did you mean 'optim.lr'?"),
        (["lr=1"], "Unknown recipe key 'lr'. Did you mean 'optim.lr'?"),
        (["optm.lr=1"], "Unknown recipe key 'optm'. Did you mean 'optim'?"),
        (["evaluate.flip=true"], "Unknown recipe key 'evaluate.flip'. Another evaluate.protocol takes it."),
        (["data.lr=1"], "Unknown recipe key 'data.lr'. Did you mean 'optim.lr'?"),
        (["task.smoothing=0.1"], "Unknown recipe key 'task.smoothing'. Did you mean 'task.label_smoothing'?"),
        (
            ["zzzzzz=1"],
            "Unknown recipe key 'zzzzzz'. Known: data, epochs, evaluate, model, optim, run, scale_epochs,"
            " steps, task.",
        ),
        (["task.name=clasify"], f"task.name takes one of {', '.join(sorted(TASKS))}; got 'clasify'."),
        (["optim.name=adam"], "Unknown optimizer 'adam'. Did you mean 'adamw'?"),
        (["run.precision=fp8"], "run.precision takes one of auto, float32, bf16, fp16; got 'fp8'."),
        (["task.loss=focal"], "task.loss takes one of cross_entropy, bce; got 'focal'."),
        (["optim.warmup_epochs=2.5"], "optim.warmup_epochs takes int; got 2.5 (float)."),
        (['optim.warmup_epochs="2"'], "optim.warmup_epochs takes int; got '2' (str)."),
        (["optim.lr=fast"], "optim.lr takes float; got 'fast' (str)."),
        (["model.name=3"], "Unknown model '3'. `tetravit list models` shows them."),
        (["data.workers=2.5"], "data.workers takes int or auto; got 2.5 (float)."),
        (["optim.betas=0.9"], "optim.betas takes list; got 0.9 (float)."),
        (["optim.betas=[0.9]"], "optim.betas has too few values; got [0.9]."),
        (["optim.betas=[0.9, 0.9, 0.9]"], "optim.betas takes 2 values; got 3."),
        (["optim.betas=[0.9, true]"], "optim.betas.1 takes float; got True (bool)."),
        (["optim.lr=nan"], "optim.lr takes a finite number; got nan."),
        (["optim=3"], "optim takes a table; got 3 (int)."),
        (["task=3"], "task takes a table; got 3 (int)."),
        (["epochs=0"], "epochs is at least 1; got 0."),
        (["optim.lr=0.0"], "optim.lr is above 0; got 0.0."),
        (["model.drop_path=1.0"], "model.drop_path is below 1; got 1.0."),
        (["optim.layer_decay=1.5"], "optim.layer_decay is at most 1; got 1.5."),
        (["optim.warmup_epochs=4"], "optim.warmup_epochs is at most epochs; got 4 of 3."),
        (["optim.lr"], "An override reads section.key=value; got 'optim.lr'."),
        (["=1"], "An override reads section.key=value; got '=1'."),
        (["optim..lr=1"], "An override reads section.key=value; got 'optim..lr=1'."),
        (["model.name=xcit_nano_p16"], "Unknown model 'xcit_nano_p16'. Did you mean 'xcit_nano_12_p16'?"),
        (["data.name=imagenett"], "Unknown data set 'imagenett'. Did you mean 'imagenet'?"),
        (["data.augment=crop(32) | flop"], "Unknown augmentation 'flop'. Did you mean 'flip'?"),
        (["epochs.x=1"], "epochs takes int; got {'x': 1} (table)."),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else "",
)
def test_what_is_wrong_is_said_in_one_line(file, overrides, message):
    with pytest.raises(ValueError) as error:
        load(file, overrides)
    assert str(error.value) == message


@pytest.mark.parametrize(
    ("cut", "message"),
    [
        ("epochs = 3\n", "The recipe lacks epochs."),
        ('[task]\nname = "classify"\n', "The recipe lacks task."),
        ('name = "classify"\n', "The recipe lacks task.name."),
        ('name = "synthetic"\n', "The recipe lacks data.name."),
        ("batch_size = 8\n", "The recipe lacks data.batch_size."),
        ('[model]\nname = "xcit_nano_12_p16"\n', "The recipe lacks model."),
    ],
    ids=lambda value: value.strip(),
)
def test_what_is_missing_is_named(file, cut, message):
    file.write_text(BASE.replace(cut, ""))
    with pytest.raises(ValueError) as error:
        load(file)
    assert str(error.value) == message


def test_what_is_unknown_counts_before_what_is_missing(file):
    file.write_text(BASE.replace("batch_size", "batchsize"))
    with pytest.raises(ValueError) as error:
        load(file)
    assert str(error.value) == "Unknown recipe key 'data.batchsize'. Did you mean 'data.batch_size'?"


def test_a_file_that_is_not_toml_is_named(file):
    file.write_text("epochs == 3")
    with pytest.raises(ValueError) as error:
        load(file)
    assert str(error.value) == f"{file} is not TOML: Invalid value (at line 1, column 9)."


VARIANTS = """
[variants.xcit_nano_12_p16]
model.drop_path = 0.2
optim.lr = 0.5
[variants.xcit_tiny_12_p8]
model.drop_path = 0.3
"""


def test_a_variant_counts_more_than_the_file_and_less_than_an_override(file):
    file.write_text(BASE + "lr = 0.1\n" + VARIANTS)
    recipe = load(file)
    assert (recipe.optim.lr, recipe.model.drop_path) == (0.5, 0.2)
    recipe = load(file, ["optim.lr=0.7"])
    assert (recipe.optim.lr, recipe.model.drop_path) == (0.7, 0.2)
    recipe = load(file, ["model.name=xcit_tiny_12_p8"])
    assert (recipe.optim.lr, recipe.model.drop_path) == (0.1, 0.3)
    recipe = load(file, ["model.name=xcit_small_12_p8"])
    assert (recipe.optim.lr, recipe.model.drop_path) == (0.1, None)


def test_find_takes_names_and_files(file):
    assert find("digits").name == "digits.toml"
    assert find("xcit/imagenet") == list_recipes()["xcit/imagenet"]
    assert find(file) == file
    with pytest.raises(ValueError) as error:
        find("digts")
    assert str(error.value) == "Unknown recipe 'digts'. Did you mean 'digits'?"
    with pytest.raises(ValueError) as error:
        find("no/such.toml")
    assert str(error.value) == "There is no recipe file 'no/such.toml'."


values = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-5, 5),
    st.floats(allow_nan=False),
    st.text(max_size=5),
    st.just([]),
    st.just({}),
)
keys = st.sampled_from(
    [
        "epochs",
        "task",
        "model",
        "optim.lr",
        "optim.betas",
        "data.workers",
        "data.root",
        "run.keep",
        "x",
        "task.name",
        "data.options",
        "model.options",
        "run.device",
        "task.loss",
        "data.batch_size",
        "run.save_minutes",
    ]
)


@pytest.mark.slow
@settings(max_examples=300, deadline=None)
@given(st.dictionaries(keys, values, max_size=4))
def test_any_table_is_a_recipe_or_one_line(changes):
    table = tomllib.loads(BASE)
    for path, value in changes.items():
        section, _, key = path.partition(".")
        if key and isinstance(table.get(section), dict):
            table[section][key] = value
        elif not key:
            table[section] = value
    try:
        recipe, text = validated(table), ""
    except ValueError as error:
        recipe, text = None, str(error)
    assert not any(sign in text for sign in ("\n", "Traceback", "pydantic"))
    assert recipe is None or validated(tomllib.loads(dump(recipe))) == recipe


def test_options_stay_with_their_data_set():
    text = """
epochs = 9
task.name = "classify"
model.name = "deit_tiny"
data = { name = "synthetic", batch_size = 2, options = { size = 9 } }
"""
    assert loads(text).data.options == {"size": 9}
    assert loads(text, ["data.name=synthetic"]).data.options == {"size": 9}
    assert loads(text, ["data.name=digits"]).data.options == {}
    assert loads(text, ["data.name=digits", "data.options.fraction=0.5"]).data.options == {"fraction": 0.5}


@pytest.mark.parametrize("path", ["data.options", "model.options", "model.head_options"])
def test_a_key_without_a_value_is_no_option(path):
    section, key = path.split(".")
    table = tomllib.loads(BASE)
    table[section][key] = {"name": None, "loss": {"a": [1, {"b": None}]}}
    with pytest.raises(ValueError) as error:
        validated(table)
    assert str(error.value) == f"A table of options has a value for every key; got {table[section][key]!r}."
    table[section][key] = {"loss": {"a": [1, {"b": None}]}}
    with pytest.raises(ValueError) as error:
        validated(table)
    assert str(error.value) == "A table of options has a value for every key; got {'b': None}."


LONG = """
epochs = 30
task.name = "classify"
model.name = "xcit_nano_12_p16"
data = { name = "digits", batch_size = 8 }
optim = { warmup_epochs = 3, cooldown_epochs = 6 }
"""


def test_entries_say_where_each_value_was_set():
    text = LONG + "[variants.xcit_nano_12_p16]\nmodel.drop_path = 0.1\n"
    rows = {e.key: e for e in entries(loads(text, ["optim.lr=1e-3", "model.options.depth=2"]))}
    wanted = {
        "epochs": (30, "recipe"), "model.drop_path": (0.1, "variant"), "optim.lr": (1e-3, "command line"),
        "optim.momentum": (0.9, "default"), "evaluate.protocol": ("accuracy", "default"),
        "model.options": ({"depth": 2}, "command line"),
    }  # fmt: skip
    assert {key: (rows[key].value, rows[key].origin) for key in wanted} == wanted


def test_every_key_is_described():
    assert [key for section in ("epochs", "model", "task", "evaluate", "optim", "run")
            for key, text in describe(section) if not text and key != "task.name"] == []  # fmt: skip


@pytest.mark.parametrize(
    ("overrides", "length", "note"),
    [
        (["epochs=1"], (1, None, 0, None), "warm-up of 0 epochs of 1, in place of 3 epochs of 30"),
        (["epochs=20"], (20, None, 3, None), None),
        (["steps=100"], (None, 100, 3, 10), "warm-up of 10 steps of 100, in place of 3 epochs of 30"),
        (["steps=100", "optim.warmup_steps=7"], (None, 100, 3, 7), None),
    ],
    ids=str,
)
def test_a_length_on_the_command_line_fits_the_warm_up(overrides, length, note):
    recipe = loads(LONG, overrides)
    assert (recipe.epochs, recipe.steps, recipe.optim.warmup_epochs, recipe.optim.warmup_steps) == length
    assert (recipe.notes[0] if recipe.notes else None) == note
    assert loads(dump(recipe)) == recipe


def test_steps_that_are_fewer_shrink_a_warm_up_in_steps():
    text = LONG.replace("epochs = 30", "steps = 1000", 1).replace("warmup_epochs = 3", "warmup_steps = 200")
    recipe = loads(text, ["steps=50"])
    assert (recipe.steps, recipe.optim.warmup_steps) == (50, 10)
