"""list, show, copy."""

import json
import subprocess
import sys

import pytest

from tetravit.cli import show
from tetravit.cli.base import (
    KINDS,
    MENUS,
    complete_kinds,
    complete_models,
    complete_recipes,
    menu,
    recipe_files,
)
from tetravit.cli.show import _rows
from tetravit.models import list_models
from tetravit.recipe import find, list_recipes, load
from tetravit.registry import SYNONYMS, discover, outline


def rows(out: str) -> list[dict]:
    return [json.loads(line) for line in out.splitlines()]


@pytest.mark.parametrize("kind", KINDS)
def test_every_menu_is_listed(ask, kind):
    table, lines = ask("list", kind), ask("list", kind, "--json")
    assert table.code == lines.code == 0
    for row in rows(lines.out):
        assert row["name"] in table.out


def test_models_come_with_their_numbers(ask):
    listed = {row["name"]: row for row in rows(ask("list", "models", "--json").out)}
    assert list(listed) == list_models()
    row = listed["xcit_small_12_p16"]
    assert row["params"] == 26_253_304
    assert row["flops"] == 2 * row["macs"]
    assert row["macs"] / 1e9 == pytest.approx(4.8, abs=0.06)  # the authors' README
    assert (row["top1"], row["licence"]) == (82.0, "Apache-2.0")
    assert listed["gcvit_tiny"]["licence"] == "CC-BY-NC-SA-4.0"
    assert listed["convit_small_plus"]["top1"] is None  # never published


def test_a_pattern_narrows_the_list(ask):
    assert [row["name"] for row in rows(ask("list", "models", "deit_*", "--json").out)] == [
        "deit_base",
        "deit_base_distilled",
        "deit_small",
        "deit_small_distilled",
        "deit_tiny",
        "deit_tiny_distilled",
    ]


@pytest.mark.parametrize("kind", ["models", "weights"])
def test_only_what_may_be_used_commercially(ask, kind):
    every, free = (rows(ask("list", kind, "--json", *more).out) for more in ((), ("--commercial-ok",)))
    assert free == [row for row in every if row["commercial"]]
    names = {row["name"].partition("_")[0] for row in free}
    assert {"xcit", "convit", "twins", "deit"} <= names
    assert "gcvit" not in names
    assert "gcvit" not in ask("list", kind, "--commercial-ok").out


def test_a_kind_may_be_said_in_the_singular(ask):
    assert ask("list", "recipe").out == ask("list", "recipes").out


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["list", "mdels"], "tetravit list: Unknown kind of name 'mdels'. Did you mean 'models'?\n"),
        (
            ["list", "models", "zz*"],
            "tetravit list: No models match 'zz*'. `tetravit list models` shows all.\n",
        ),
        (
            ["list", "heads", "--commercial-ok"],
            "tetravit list: --commercial-ok is for models and weights; got heads.\n",
        ),
        (
            ["list", "weights", "gcvit_*", "--commercial-ok"],
            "tetravit list: No weights match 'gcvit_*'. `tetravit list weights` shows all.\n",
        ),
        (
            ["show", "nothing"],
            "tetravit show: Unknown name 'nothing'. `tetravit list` shows what has a name.\n",
        ),
        (["show", "digit"], "tetravit show: Unknown name 'digit'. Did you mean 'digits'?\n"),
        (
            ["show", "xcit_nano_p16"],
            "tetravit show: Unknown name 'xcit_nano_p16'. Did you mean 'xcit_nano_12_p16'?\n",
        ),
        (
            ["show", "deit_tiny", "--size", "8"],
            "tetravit show: image_size is a side in pixels from 32 up, or (height, width); got 8.\n",
        ),
        (["copy", "digit", "x.toml"], "tetravit copy: Unknown recipe 'digit'. Did you mean 'digits'?\n"),
    ],
    ids=["kind", "pattern", "commercial", "none", "nothing", "name", "model", "size", "recipe"],
)
def test_mistakes(ask, arguments, text):
    answer = ask(*arguments)
    assert (answer.code, answer.out, answer.err) == (2, "", text)


@pytest.mark.slow
def test_show_a_model(ask):
    (facts,) = rows(ask("show", "twins_svt_small", "--json").out)
    assert facts["aliases"] == ["alt_gvt_small"]
    assert [level["stride"] for level in facts["pyramid"]] == [4, 8, 16, 32]
    assert facts["pyramid"][0]["shape"] == [64, 56, 56]
    assert facts["flops"] == 2 * facts["macs"]
    assert "arXiv:2104.13840" in facts["paper"]
    assert "twins_svt_small.in1k" in [row["name"] for row in facts["checkpoints"]]
    text = ask("show", "alt_gvt_small").out
    for words in ("GMACs", "GFLOPs, two per multiply-add", "64 x 56 x 56 at stride 4", "81.7 top1 at 224 px"):
        assert words in text


@pytest.mark.slow
def test_show_at_another_size(ask):
    (small,) = rows(ask("show", "xcit_nano_12_p16", "--size", "128", "--json").out)
    assert small["pyramid"][0]["shape"] == [128, 32, 32]
    assert small["image_size"] == 128


def test_show_a_recipe_with_the_origin_of_every_value(ask):
    answer = ask("show", "xcit/imagenet")
    assert answer.code == 0
    assert "arXiv:2106.09681" in answer.out
    (facts,) = rows(ask("show", "xcit/imagenet", "--json").out)
    assert facts["text"] == find("xcit/imagenet").read_text()
    keys = {row["key"]: row for row in facts["keys"]}
    assert keys["optim.lr"]["origin"] == "recipe"
    assert keys["optim.momentum"] | {"about": ""} == {
        "key": "optim.momentum",
        "value": "0.9",
        "origin": "default",
        "about": "",
    }
    assert keys["model.drop_path"]["origin"] == "variant"
    assert keys["optim.layer_decay"]["about"]


@pytest.mark.slow
def test_show_a_section_and_a_key_of_recipes(ask):
    section = rows(ask("show", "optim", "--json").out)
    assert "optim.lr" in [row["key"] for row in section]
    (key,) = rows(ask("show", "optim.layer_decay", "--json").out)
    assert (key["type"], key["default"]) == ("float", "1.0")
    shared = {row["key"]: row["about"] for row in rows(ask("show", "task", "--json").out)}
    assert shared["task.loss"].endswith("(classify, distill)")
    assert shared["task.tau"].endswith("(distill)")
    wrong = ask("show", "optim.layer_deacy")
    assert wrong.err == (
        "tetravit show: Unknown recipe key 'optim.layer_deacy'. Did you mean 'optim.layer_decay'?\n"
    )


@pytest.mark.slow
def test_show_published_weights(ask):
    (facts,) = rows(ask("show", "xcit_nano_12_p16.in1k", "--json").out)
    assert (facts["kind"], facts["published"]) == ("weights", {"top1": 69.9})
    assert facts["urls"][0].startswith("https://")
    assert "GC ViT" not in ask("show", "gcvit_tiny.in1k").out
    assert "no commercial use" in ask("show", "gcvit_tiny.in1k").out


@pytest.mark.slow
@pytest.mark.parametrize("kind", MENUS)
def test_every_row_of_every_menu_is_shown(ask, kind):
    for name in menu(kind):
        (facts,) = rows(ask("show", name, "--json").out)
        assert facts["about"], name
        assert name in ask("show", name).out


@pytest.mark.slow
@pytest.mark.parametrize("kind", MENUS)
def test_sources_describe_what_an_import_gives(kind):
    package, tables, _ = MENUS[kind]
    menus = [discover(package, table) for table in tables.split()]
    imported = {name: outline(row) for rows in menus for name, row in rows.items()}
    read = menu(kind)
    assert set(read) == set(imported)
    for name, row in read.items():
        assert row.about.partition("\n")[0]
        if row.options is not None:
            assert [o.partition(":")[0].partition(" ")[0] for o in row.options] == [
                o.partition(":")[0].partition("=")[0].lstrip("*") for o in imported[name].options
            ], name


@pytest.mark.parametrize(
    ("name", "near"), [("lr", "optim.lr"), ("amp", "run.precision"), ("batch", "data.batch_size")]
)
def test_names_of_other_programs_lead_to_ours(ask, name, near):
    assert ask("show", name).err == f"tetravit show: Unknown name {name!r}. Did you mean {near!r}?\n"
    answer = ask("train", "digits", f"{name}=1")
    assert answer.err == f"tetravit train: Unknown recipe key {name!r}. Did you mean {near!r}?\n"


def test_synonyms_are_keys_of_recipes():
    sections = {name.partition(".")[0] for name in SYNONYMS.values()} - {"epochs"}
    keys = {key for section in sections for key in _rows(section)}
    assert set(SYNONYMS.values()) - {"epochs"} <= keys


def test_list_alone_lists_the_kinds(ask):
    assert [row["name"] for row in rows(ask("list", "--json").out)] == list(KINDS)
    answer = ask("list")
    assert all(kind in answer.out for kind in KINDS)
    assert answer.err == "`tetravit list KIND` shows the names, `tetravit show NAME` everything about one.\n"


@pytest.mark.slow
@pytest.mark.parametrize(
    "arguments",
    [
        ["list"],
        ["list", "heads"],
        ["list", "models"],
        ["list", "weights"],
        ["show", "xcit_small_12_p16"],
        ["show", "xcit_small_12_p16.in1k"],
        ["list", "recipes"],
        ["list", "datasets"],
        ["show", "onnx"],
        ["show", "retinanet"],
        ["show", "nothing_like_it"],
        ["train", "digts"],
    ],
    ids=" ".join,
)
def test_menus_are_read_without_torch(arguments):
    code = "import sys\nfrom tetravit.cli import main\ntry: main(sys.argv[1:])\n"
    code += "finally: print('torch' in sys.modules)"
    found = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True)
    assert found.stdout.splitlines()[-1] == "False"


def test_copy_keeps_the_comments_and_still_loads(ask, tmp_path):
    answer = ask("copy", "digits", tmp_path / "mine")
    assert answer.err == f"Wrote {tmp_path}/mine.toml. Train it: tetravit train {tmp_path}/mine.toml\n"
    assert (tmp_path / "mine.toml").read_text() == find("digits").read_text()
    assert load(tmp_path / "mine.toml") == load(find("digits"))


def test_copy_into_a_folder(ask, tmp_path):
    assert ask("copy", "xcit/imagenet", tmp_path).code == 0
    assert (tmp_path / "imagenet.toml").exists()


def test_copy_writes_over_nothing(ask, tmp_path):
    (tmp_path / "mine.toml").write_text("precious")
    answer = ask("copy", "digits", tmp_path / "mine.toml")
    assert (answer.code, answer.err) == (2, f"tetravit copy: {tmp_path}/mine.toml: File exists.\n")
    assert (tmp_path / "mine.toml").read_text() == "precious"


def test_completion_knows_the_names():
    assert complete_kinds("da") == ["datasets"]
    assert complete_models("") == list_models()
    assert complete_models("deit_t") == ["deit_tiny", "deit_tiny_distilled"]
    assert complete_recipes("") == list(list_recipes())


def test_the_stored_table_of_keys_is_that_of_the_classes():
    keys = show._stored_keys()
    assert keys == json.loads(json.dumps(show.described_keys())), "run `python -m tetravit.cli.show`"
    for name in recipe_files():
        assert show._rows_of_file(name, keys) == show.recipe_rows(name), name
