"""From a name to a model, and on to files: catalogue, imports, folders, the hub, conversion back and forth."""

import dataclasses
import json
import re

import pytest
import timm
import torch
import typer
from authors import golden
from dense.answers import DenseGolden
from typer.testing import CliRunner

from tetravit import weights
from tetravit.cli import weights as cli
from tetravit.files import write_json
from tetravit.models import create_detector, create_model
from tetravit.structures import Preprocess
from tetravit.weights import convert, fileformat, hub, store
from tetravit.weights.base import Checkpoint, Source
from tetravit.weights.convert import find, load
from tetravit.weights.download import Unavailable
from tetravit.weights.fileformat import BadFile, Header

NAME = "xcit_nano_12_p16"
TAGGED = f"{NAME}.in1k"


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("TETRAVIT_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("TETRAVIT_OFFLINE", "1")
    return tmp_path / "home"


@pytest.fixture(scope="module")
def official():
    return golden(NAME).state()


@pytest.fixture
def fetched(official):
    """The authors' file, as if it had been downloaded."""
    path = store.place(weights.CHECKPOINTS[TAGGED].sources[0].url)
    path.parent.mkdir(parents=True)
    torch.save({"model": official, "epoch": 399}, path)
    return path


def empty(**options):
    with torch.device("meta"):
        return create_model(NAME, **options).eval()


def run(*args):
    app = typer.Typer()
    for name, verb in {**cli.GROUPS["weights"].verbs, **cli.VERBS}.items():
        app.command(name)(verb)
    return CliRunner().invoke(app, [str(a) for a in args])


def test_a_tag_finds_the_authors_file(fetched, official):
    for source, model in ((TAGGED, ""), ("in1k", NAME)):
        found = find(source, model=model)
        assert (found.where, found.row.name, found.source.layout) == (fetched, TAGGED, "official")
        assert found.model == (NAME, {"num_classes": 1000})
        assert found.preprocess == Preprocess(size=224, crop=1.0)
    model = empty()
    report = load(model, found)
    assert (report.layout, report.entry) == ("official", "model")
    assert torch.equal(model.backbone.cls_token, official["cls_token"])


@pytest.mark.slow
def test_the_published_one_of_several_is_taken(tmp_path, official):
    zeros = {k: torch.zeros_like(v) for k, v in official.items()}
    torch.save({"model": zeros, "state_dict": official}, tmp_path / "c.pth")
    row = Checkpoint(NAME, "x", (), data="-", licence="-", commercial=True)
    found = convert.ResolvedWeights(tmp_path / "c.pth", row, Source("-", "official", "state_dict"))
    report = load(empty(), found)
    assert report.entry == "state_dict"
    assert load(empty(), convert.ResolvedWeights(tmp_path / "c.pth")).entry == "model"


@pytest.mark.parametrize(
    ("source", "model", "text"),
    [
        (
            "xcit_nano_12_p16.in1",
            "",
            "No checkpoint named 'xcit_nano_12_p16.in1', and no such file or run folder."
            " Did you mean 'xcit_nano_12_p16.in1k'?",
        ),
        (
            "in22k",
            NAME,
            "No checkpoint named 'in22k' for xcit_nano_12_p16, and no such file. "
            "Published for xcit_nano_12_p16: in1k, in1k_dist, in1k_dist_384.",
        ),
        (
            "in1k",
            "convit_tiny_plus",
            "No checkpoint named 'in1k' for convit_tiny_plus, and no such file. "
            "None are published for convit_tiny_plus.",
        ),
    ],
)
def test_what_is_not_there_is_named(source, model, text):
    with pytest.raises(ValueError) as error:
        find(source, model=model)
    assert str(error.value) == text


def test_a_timm_folder_says_which_model_it_is(tmp_path, official):
    theirs = timm.create_model(f"{NAME}_384", num_classes=7)
    timm.models.save_for_hf(theirs, str(tmp_path / "f"))
    found = find(tmp_path / "f")
    assert found.model == (NAME, {"image_size": 384, "num_classes": 7})
    assert found.preprocess == Preprocess(size=384, crop=1.0)
    model = empty(num_classes=7)
    assert load(model, found).layout == "timm"
    assert torch.equal(model.head.weight, theirs.head.weight)


@pytest.mark.slow
def test_convert_from_the_catalogue_and_back(tmp_path, fetched, official, monkeypatch):
    monkeypatch.chdir(tmp_path)
    done = run("convert", TAGGED, "--as", TAGGED)
    assert done.exit_code == 0, done.output
    tensors, header = fileformat.read(tmp_path / f"{TAGGED}.safetensors")
    assert (header.model, header.num_classes, header.licence) == (NAME, 1000, "Apache-2.0")
    assert (len(header.class_names), header.class_names[0]) == (1000, "tench")
    assert header.preprocess == Preprocess(size=224, crop=1.0)
    assert header.source == weights.CHECKPOINTS[TAGGED].sources[0].url
    assert torch.equal(tensors["backbone.cls_token"], official["cls_token"])
    for line in (
        "matched  387 of 387 tensors, 385 renamed",
        "layout official, entry 'model'",
        f"hash     sha256 {header.fingerprint}",
    ):
        assert line in done.output
    done = run("convert", f"{TAGGED}.safetensors", "--as", TAGGED, "--to", "official", "--out", "back.pth")
    assert done.exit_code == 0, done.output
    back = torch.load("back.pth", weights_only=True)
    assert back.keys() == official.keys()
    assert all(torch.equal(back[k], official[k]) for k in back)
    done = run("convert", f"{TAGGED}.safetensors", "--as", TAGGED, "--to", "timm", "--out", "t.safetensors")
    theirs = timm.create_model(f"{NAME}_224")
    theirs.load_state_dict(__import__("safetensors.torch").torch.load_file("t.safetensors"))
    for exported in ("back.pth", "t.safetensors"):
        done = run("convert", exported, "--as", TAGGED, "--out", "again.safetensors")
        assert done.exit_code == 0, done.output
        assert fileformat.read_header("again.safetensors").fingerprint == header.fingerprint


def test_an_import_is_used_by_its_name(tmp_path, official):
    state = {k: v for k, v in official.items() if not k.startswith("head.")}
    state["head.weight"], state["head.bias"] = torch.ones(3, 128), torch.ones(3)
    torch.save(state, tmp_path / "mine.pth")
    done = run("import", tmp_path / "mine.pth", "--as", f"{NAME}.mine")
    assert done.exit_code == 0, done.output
    found = find(f"{NAME}.mine")
    assert found.model == (NAME, {"num_classes": 3})
    model = empty(num_classes=3)
    assert load(model, found).layout == "ours"
    assert torch.equal(model.head.weight, torch.ones(3, 128))
    assert run("verify").stdout.startswith("ok ")


def test_an_import_from_a_browser_replaces_the_download(tmp_path, official):
    torch.save({"model": official}, tmp_path / "downloaded.pth")
    assert run("import", tmp_path / "downloaded.pth", "--as", TAGGED).exit_code == 0
    found = find(TAGGED)
    assert found.header.preprocess == Preprocess(size=224, crop=1.0)
    assert found.header.licence == "Apache-2.0"


@pytest.mark.slow
def test_a_non_commercial_import_asks_too(tmp_path):
    torch.save(golden("gcvit_xxtiny").state(), tmp_path / "g.pth")
    done = run("import", tmp_path / "g.pth", "--as", "gcvit_xxtiny.in1k")
    assert "which forbids commercial use" in str(done.exception)
    done = run("import", tmp_path / "g.pth", "--as", "gcvit_xxtiny.in1k", "--accept-license")
    assert done.exit_code == 0, done.output
    assert find("gcvit_xxtiny.in1k").header.licence == "CC-BY-NC-SA-4.0"


@pytest.mark.parametrize(
    ("args", "text"),
    [
        (("import", "x.pth"), "x.pth needs a name: `tetravit weights import x.pth --as NAME.TAG`."),
        (
            ("convert", "x", "--as", "xcit"),
            "Weights are called NAME.TAG, like xcit_nano_12_p16.mine; got 'xcit'.",
        ),
        (
            ("convert", "x", "--as", "xcit_nano.a"),
            "Unknown model 'xcit_nano'. Did you mean 'xcit_nano_12_p8'?",
        ),
        (("list", "y*"), "No weights match 'y*'. `tetravit weights list` shows all."),
    ],
)
def test_messages(args, text):
    done = run(*args)
    assert isinstance(done.exception, ValueError)
    assert str(done.exception) == text


def test_missing_values_are_not_written(tmp_path, official):
    state = {k: v for k, v in official.items() if k != "norm.weight"}
    torch.save(state, tmp_path / "m.pth")
    done = run(
        "convert", tmp_path / "m.pth", "--as", f"{NAME}.m", "--out", tmp_path / "o", "--allow", "norm.*"
    )
    assert str(done.exception) == (
        f"{tmp_path / 'o'} was not written: 'backbone.norm.weight' has no values (missing from the source)."
    )
    assert not (tmp_path / "o").exists()


def test_the_list(fetched):
    rows = [json.loads(line) for line in run("list", "--json").stdout.splitlines()]
    assert len(rows) == len(weights.CHECKPOINTS)
    assert {row["name"] for row in rows if row["here"]} == {TAGGED}
    free = [json.loads(line) for line in run("list", "--json", "--commercial-ok").stdout.splitlines()]
    assert len(rows) - len(free) == 11
    assert re.search(r"xcit_nano_12_p16\.in1k +classify +top1 69\.9 +69\.982 +ImageNet-1k +Apache-2\.0 +yes",
                     run("list", "xcit_nano_12_p16.*").output)  # fmt: skip


def test_verify_names_what_changed(fetched):
    with fetched.open("r+b") as file:
        file.write(b"PK\x03\x05")
    write_json(fetched.with_name(fetched.name + ".json"), {"sha256": "0", "size": 1})
    done = run("verify", TAGGED)
    assert done.output.startswith(f"CHANGED  {fetched}: has changed since it was stored (sha256)")
    assert str(done.exception) == "1 of 1 files have changed since they were stored."


def test_bundle_and_import(fetched, tmp_path, monkeypatch):
    done = run("bundle", TAGGED, "--out", tmp_path / "b.zip")
    assert done.stdout.strip() == str(tmp_path / "b.zip")
    monkeypatch.setenv("TETRAVIT_HOME", str(tmp_path / "there"))
    assert run("import", tmp_path / "b.zip").stdout.strip() == TAGGED
    assert run("fetch", TAGGED).stdout.strip() == str(store.place(weights.CHECKPOINTS[TAGGED].sources[0].url))


class FakeHub:
    """The two calls we make, answered from a folder."""

    def __init__(self, folder):
        self.folder, self.calls = folder, []

    def snapshot_download(self, repository, **options):
        self.calls.append((repository, options["revision"], options["local_files_only"]))
        if not self.folder.is_dir():
            raise RuntimeError("Repository not found.\nmore text")
        return str(self.folder)

    def HfApi(self, token=None):
        return self

    def create_repo(self, repository, **options):
        self.calls.append((repository, options))

    def upload_folder(self, *, repo_id, folder_path, commit_message):
        self.folder.mkdir()
        for path in folder_path.iterdir():
            (self.folder / path.name).write_bytes(path.read_bytes())
        return f"https://huggingface.co/{repo_id}/commit/1"


def test_push_and_load_from_the_hub(tmp_path, official, monkeypatch):
    fake = FakeHub(tmp_path / "repo")
    monkeypatch.setattr(hub, "_api", lambda: fake)
    model = empty()
    load(model, convert.ResolvedWeights(official))
    header = Header(
        NAME, preprocess=Preprocess(crop=1.0), licence="Apache-2.0", source="a test", recipe="epochs = 1"
    )
    header = convert.write(tmp_path / "m.safetensors", model, header)
    assert (
        hub.push(tmp_path / "m.safetensors", "me/mine", private=True)
        == "https://huggingface.co/me/mine/commit/1"
    )
    assert fake.calls == [("me/mine", {"private": True, "exist_ok": True})]
    card = (tmp_path / "repo" / "README.md").read_text()
    for text in (
        "license: apache-2.0",
        f"| Weights (sha256) | `{header.fingerprint}` |",
        "epochs = 1",
        "crop 1 (center)",
    ):
        assert text in card
    found = find("hf:me/mine@v2")
    assert fake.calls[-1] == ("me/mine", "v2", True)
    assert found.header == header
    assert found.model == (NAME, {"num_classes": 1000})
    again = empty()
    assert load(again, found).fingerprint == header.fingerprint


def test_a_card_is_written_from_the_row(tmp_path, monkeypatch):
    fake = FakeHub(tmp_path / "repo")
    monkeypatch.setattr(hub, "_api", lambda: fake)
    row = weights.CHECKPOINTS[TAGGED]
    model = create_model(NAME, depth=1)
    header = Header(NAME, options={"depth": 1}, source=row.sources[0].url, licence=row.licence)
    convert.write(tmp_path / "m.safetensors", model, header)
    done = run("push", tmp_path / "m.safetensors", "me/mine")
    assert done.stdout == "https://huggingface.co/me/mine/commit/1\n"
    assert fake.calls == [("me/mine", {"private": False, "exist_ok": True})]
    card = (tmp_path / "repo" / "README.md").read_text()
    for line in (
        "| Trained on | ImageNet-1k |",
        "| Published | top1 69.9 (facebookresearch/xcit@82f5291 README.md) |",
        "| Measured by others | top1 69.982, top5 89.78, real 77.906, v2 58.41, a 4.813, r 33.037, sketch 21.449 "
        "(timm results) |",
    ):
        assert line in card
    assert "Published" not in hub.card(dataclasses.replace(header, recipe="epochs = 1"))


def test_hub_messages(tmp_path, monkeypatch):
    monkeypatch.setattr(hub, "_api", lambda: FakeHub(tmp_path / "none"))
    with pytest.raises(ValueError) as error:
        find("hf:mine")
    assert (
        str(error.value)
        == "A repository on the hub is hf:OWNER/NAME, or hf:OWNER/NAME@REVISION; got 'hf:mine'."
    )
    with pytest.raises(Unavailable) as unavailable:
        find("hf:me/mine")
    assert str(unavailable.value) == "hf:me/mine is not available from the hub: Repository not found."
    monkeypatch.undo()
    monkeypatch.setitem(__import__("sys").modules, "huggingface_hub", None)
    with pytest.raises(ValueError) as error:
        hub.fetch("hf:me/mine")
    assert str(error.value) == "Repositories on the hub need the extra: pip install 'tetravit[hub]'."


def test_a_damaged_file_is_not_pushed(tmp_path, monkeypatch):
    monkeypatch.setattr(hub, "_api", lambda: FakeHub(tmp_path / "repo"))
    (tmp_path / "x").write_bytes(b"nothing")
    with pytest.raises(BadFile):
        hub.push(tmp_path / "x", "me/mine")
    assert not (tmp_path / "repo").exists()


def test_published_features_get_a_fresh_head(tmp_path, official):
    torch.save({k: v for k, v in official.items() if not k.startswith("head.")}, tmp_path / "f.pth")
    row = Checkpoint(NAME, "x", (), data="-", licence="-", commercial=True, task="embed", num_classes=0)
    report = load(create_model(NAME, num_classes=5), convert.ResolvedWeights(tmp_path / "f.pth", row))
    assert report.missing == ["head.weight", "head.bias"]
    with pytest.raises(BadFile, match=r"missing: 'head\.weight', 'head\.bias'\."):
        load(empty(num_classes=5), convert.ResolvedWeights(tmp_path / "f.pth"))


@pytest.mark.slow
def test_a_published_detector(tmp_path):
    """The authors' layout of a whole Mask R-CNN; the classifier inside our backbone stays empty, and is reported."""
    name = "xcit_tiny_12_p16"
    with torch.device("meta"):
        model = create_detector(name, head="mask_rcnn", num_classes=80)
    state = DenseGolden("mask_rcnn_xcit_tiny_12_p16").state
    torch.save({"meta": {"CLASSES": ["a"]}, "state_dict": state}, tmp_path / "d.pth")
    row = weights.CHECKPOINTS[f"{name}.coco_mask_rcnn"]
    report = load(model, convert.ResolvedWeights(tmp_path / "d.pth", row, row.sources[0]))
    assert (report.layout, report.entry, report.dropped) == ("mmdet", "state_dict", [])
    assert {key.split(".")[1] for key in report.missing} == {"cls_token", "class_blocks", "norm"}
    assert torch.equal(
        model.backbone.pos_embed.proj.bias, state["backbone.pos_embeder.token_projection.bias"]
    )
