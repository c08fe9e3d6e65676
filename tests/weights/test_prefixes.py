"""Names that other programs put in front of ours, and the dictionaries in which they keep weights."""

import itertools

import pytest
import torch

from tetravit.models import create_model, save
from tetravit.weights.read import WRAPPERS, stripped

NAME, OPTIONS = "xcit_nano_12_p16", {"depth": 2, "dim": 16, "num_heads": 2}


@pytest.fixture(scope="module")
def model():
    return create_model(NAME, num_classes=5, **OPTIONS)


def again(source):
    return create_model(NAME, num_classes=5, weights=source, **OPTIONS)


def same(a, b):
    return all(torch.equal(x, b.state_dict()[k]) for k, x in a.state_dict().items())


@pytest.mark.parametrize("prefix", [*WRAPPERS, "module._orig_mod.", "_orig_mod.module.", "model.net.module."])
def test_a_common_prefix_is_removed_and_told(model, prefix, capsys):
    other = again({prefix + k: v for k, v in model.state_dict().items()})
    assert same(model, other)
    assert other.report.prefix == prefix
    assert f"prefix {prefix!r} removed" in str(other.report)
    assert f"prefix {prefix!r} removed" in capsys.readouterr().err
    assert other.report.renamed == 0


def test_every_pair_of_prefixes():
    for a, b in itertools.product(WRAPPERS, WRAPPERS):
        plain, prefix, _ = stripped({f"{a}{b}head.weight": torch.ones(1), f"{a}{b}x.y": torch.ones(1)})
        assert (list(plain), prefix) == (["head.weight", "x.y"], a + b)


@pytest.mark.parametrize("prefix", ["vit.", "my_net.", "lit.classifier.", "module.vit."])
def test_a_prefix_of_any_name_is_removed_and_told(model, prefix):
    other = again({prefix + k: v for k, v in model.state_dict().items()})
    assert same(model, other)
    assert other.report.prefix == prefix


def test_losses_and_averages_beside_the_model_are_dropped_and_told(model):
    """The state dict of a LightningModule."""
    state = {f"model.{k}": v for k, v in model.state_dict().items()}
    average = {f"ema_model.module.{k}": torch.zeros_like(v) for k, v in model.state_dict().items()}
    other = again({"criterion.weight": torch.ones(5), **average, **state})
    assert same(model, other)
    assert other.report.prefix == "model."
    assert other.report.dropped[0] == "criterion.weight (beside 'model.')"
    assert len(other.report.dropped) == 1 + len(average)


def test_a_head_beside_its_encoder(model):
    state = model.state_dict()
    parts = {k.replace("backbone.", "encoder."): v for k, v in state.items() if k.startswith("backbone.")}
    assert same(model, again({**parts, "head.weight": state["head.weight"], "head.bias": state["head.bias"]}))
    with pytest.raises(ValueError, match=r"missing: 'head"):
        again({**parts, "top.weight": state["head.weight"], "top.bias": state["head.bias"]})


def test_a_part_that_was_compiled(model):
    state = {k.replace("backbone.", "backbone._orig_mod."): v for k, v in model.state_dict().items()}
    assert same(model, again(state))


def test_an_averaged_model(model):
    averaged = torch.optim.swa_utils.AveragedModel(model)
    other = again(averaged.state_dict())
    assert same(model, other)
    assert other.report.prefix == "module."
    assert other.report.dropped == ["n_averaged (a counter)"]


@pytest.mark.parametrize(
    "wrap",
    [
        lambda s: {"state_dict": {f"model.{k}": v for k, v in s.items()}, "pytorch-lightning_version": "2.4"},
        lambda s: {"model_state_dict": s, "optimizer_state_dict": {"state": {}}, "epoch": 3},
        lambda s: {"module": s, "global_steps": 7},
        lambda s: {"net": s, "acc": 93.1},
    ],
)
def test_dictionaries_of_training_programs(model, wrap, tmp_path):
    torch.save(wrap(model.state_dict()), tmp_path / "c.pt")
    assert same(model, again(tmp_path / "c.pt"))


def test_the_folder_of_a_run(model, tmp_path):
    save(model, tmp_path / "best.safetensors")
    assert same(model, again(tmp_path))


def test_files_say_which_framework_wrote_them(model, tmp_path):
    from safetensors import safe_open

    from tetravit.weights import convert, fileformat

    path = tmp_path / "a.safetensors"
    save(model, path)
    convert.write_as(tmp_path / "t.safetensors", model, "timm")
    for file in (path, tmp_path / "t.safetensors"):
        with safe_open(file, "pt") as opened:
            assert opened.metadata()["format"] == "pt"
    tensors, header = fileformat.read(path)
    spelled = fileformat._spell_header(  # as the first versions wrote it
        header.to_json(),
        {k: (fileformat.NAMES[v.dtype], list(v.shape)) for k, v in tensors.items()},
        None,
    )
    old = tmp_path / "old.safetensors"
    old.write_bytes(spelled + b"".join(v.contiguous().numpy().tobytes() for v in tensors.values()))
    assert fileformat.read(old)[1].fingerprint == header.fingerprint
