"""A file in the place of its model predicts what the model does; files that can hold code need trust."""

import zipfile

import pytest
import torch
from tests.exports.test_exports import Copier, classifier, detector
from tests.toys import COLUMN

import tetravit
from tetravit.exports import TARGETS, is_exported, load_program
from tetravit.exports.aotinductor import AOTInductor, kind_of_processor
from tetravit.exports.parts.opening import target_of
from tetravit.exports.parts.precision import Float32Norms, to_half
from tetravit.exports.parts.program import Program
from tetravit.models import create_segmenter
from tetravit.models.portable import flat


def facts_of(model):
    allowed = model.program_sides
    return {
        "outputs": list(model.output_names),
        "sides": [allowed[0], allowed[-1]],
        "multiple": allowed.step,
        "made_for": [96, 96],
        **model.facts(),
    }


def program(model):
    def run(inputs):
        with torch.no_grad():
            return flat(model(*inputs))

    return Program(run, facts_of(model), "m.onnx")


def segmenter():
    torch.manual_seed(0)
    head = {"head": "semantic_fpn", "num_classes": 3, "head_options": {"width": 8}}
    model = create_segmenter("xcit_nano_12_p16", **head, **COLUMN).eval()
    model.class_names = ("a", "b", "c")
    return model


@pytest.mark.parametrize("make", [classifier, segmenter, lambda: detector("retinanet")])
def test_a_file_predicts_as_its_model(make):
    model = make()
    image = torch.randint(0, 256, (3, 90, 70), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    model.input = model.input.__class__(size=160, mode=model.input.mode, longest=320)
    ours, theirs = tetravit.predict(program(model), image), tetravit.predict(model, image)
    assert ours.to_dict() == theirs.to_dict()
    assert ours.cells() not in ([], ["nothing"])


def test_images_too_small_for_a_file_are_enlarged():
    model = classifier()
    facts = facts_of(model)
    model.input = model.input.__class__(size=32, crop=1.0)
    facts |= model.facts()
    assert Program(lambda inputs: inputs, facts, "m.onnx").input.size == (96, 96)
    assert program(model).input.size == 32  # the model is exported at its own size


def test_sides_that_a_file_does_not_take():
    with pytest.raises(ValueError) as caught:
        program(classifier())(torch.zeros(1, 3, 32, 80))
    assert str(caught.value) == "m.onnx takes images of 64 to 4096 pixels a side; got 32x80."


def test_suppression_belongs_to_the_file():
    with pytest.raises(ValueError) as caught:
        program(detector("retinanet")).detect(torch.zeros(1, 3, 160, 160), class_agnostic=True)
    assert str(caught.value) == (
        "m.onnx suppresses class by class, as it was exported; class_agnostic takes the weights."
    )


def test_a_backbone_predicts_nothing():
    with pytest.raises(ValueError) as caught:
        Program(lambda inputs: inputs, {"outputs": ["map_4"]}, "m.onnx")
    assert str(caught.value) == "m.onnx holds a backbone: it gives feature maps, not predictions."


@pytest.mark.parametrize(
    ("member", "name", "why"),
    [
        ("m/models/model.json", "torch", "PyTorch unpickles parts of it"),
        ("m/data/aotinductor/model/a.so", "aotinductor", "it is native code"),
    ],
)
def test_archives_that_can_hold_code_are_told_apart(tmp_path, member, name, why):
    path = tmp_path / "m.pt2"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(member, "")
        archive.writestr("m/extra/tetravit.json", "{}")
        archive.writestr("m/data/tetravit.json", f'{{"processor": "{kind_of_processor()}"}}')
    assert is_exported(path)
    assert target_of(path) == name
    with pytest.raises(ValueError) as caught:
        load_program(path)
    assert str(caught.value) == (
        f"{path} can execute arbitrary code, because {why}: run it with --trust (in Python trust=True) only if"
        " you trust its source."
    )


@pytest.mark.parametrize(
    ("made", "here", "runs"),
    [
        ("Linux x86_64 AVX2", "Linux x86_64 AVX512", True),
        ("Linux x86_64 AVX512", "Linux x86_64 AVX2", False),
        ("Linux x86_64 AVX2", "Linux aarch64 DEFAULT", False),
        ("Linux aarch64 SVE", "Linux aarch64 SVE", True),
    ],
)
def test_native_code_is_for_its_kind_of_processor(monkeypatch, tmp_path, made, here, runs):
    monkeypatch.setattr("tetravit.exports.aotinductor.kind_of_processor", lambda: here)
    target = AOTInductor()
    monkeypatch.setattr(target, "facts", lambda path: {"processor": made}, raising=False)
    why = "" if runs else f"it was compiled for {made}; this is {here}"
    assert target.unfit(tmp_path / "m.pt2") == why


@pytest.mark.parametrize("name", ["onnx", "openvino", "torch", "aotinductor"])
def test_a_file_of_another_program(name, tmp_path):
    pytest.importorskip({"onnx": "onnx", "openvino": "openvino"}.get(name, "torch"))
    path = tmp_path / f"m{TARGETS[name].suffix}"
    path.write_bytes(b"nothing")
    nouns = {
        "onnx": "ONNX file",
        "openvino": "OpenVINO file",
        "torch": "graph of PyTorch",
        "aotinductor": "package of AOTInductor",
    }
    with pytest.raises(ValueError) as caught:
        TARGETS[name].facts(path)
    assert str(caught.value) == f"{path} is no {nouns[name]} that `tetravit export` wrote."


def test_a_target_without_facts(tmp_path):
    with pytest.raises(ValueError, match=r"m\.copy does not say what it holds\.$"):
        Copier(None).facts(tmp_path / "m.copy")


def test_norms_and_softmax_of_half_precision_are_float32():
    torch.manual_seed(0)
    norm = to_half(torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.LayerNorm(4)), torch.float16)
    assert (norm[0].weight.dtype, norm[1].weight.dtype) == (torch.float16, torch.float32)
    x = 300 * torch.randn(2, 3, 5, 4).half()
    with Float32Norms():
        assert norm(x).dtype == torch.float16
        assert torch.equal(x.softmax(-1), x.float().softmax(-1).half())
        got = torch.nn.functional.scaled_dot_product_attention(x, x, x, scale=1e-4)
        assert torch.equal(torch.nn.functional.layer_norm(x.float(), (4,)), torch.layer_norm(x.float(), (4,)))
    x = x.float()
    wanted = torch.nn.functional.scaled_dot_product_attention(x, x, x, scale=1e-4)
    torch.testing.assert_close(got.float(), wanted, atol=1, rtol=1e-2)
