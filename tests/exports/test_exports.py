"""What is exported answers as the model does, at every batch and allowed size, or is not there."""

import json
import math
import sys
from dataclasses import replace

import pytest
import torch
from tests.toys import COLUMN, TOYS

from tetravit.backbones import VARIANTS
from tetravit.exports import TARGETS, base, export
from tetravit.exports.compare import _sizes, batches_of, compare, drawing
from tetravit.kernels.vision import roi_align
from tetravit.models import create_backbone, create_detector, create_model, create_segmenter, family
from tetravit.models.portable import apart, share
from tetravit.structures import Preprocess

NEEDS = {"onnx": "onnxruntime", "openvino": "openvino"}
NIGHTLY = (pytest.mark.nightly, pytest.mark.timeout(1800))  # writing takes minutes, on a busy machine ten


def classifier(name="xcit_nano_12_p16", **options):
    torch.manual_seed(0)
    model = create_model(name, num_classes=3, image_size=64, **(TOYS[name] | options)).eval()
    model.class_names, model.input = ("a", "b", "c"), Preprocess(size=64, crop=1.0)
    return model


def detector(head):
    """One whose scores are spread, so that there is something to find."""
    torch.manual_seed(0)
    options = {"max_detections": 10} | ({} if head == "retinanet" else {"num_proposals": 30})
    model = create_detector(
        "xcit_nano_12_p16", head=head, num_classes=4, head_options=options, **COLUMN
    ).eval()
    with torch.no_grad():
        for name, parameter in model.head.named_parameters():
            if name.endswith(("score.weight", "delta.weight")):
                parameter.normal_(std=0.1)
            if name.endswith("score.bias"):
                parameter.zero_()
    return model


def suffix(format):
    if format in NEEDS:
        pytest.importorskip(NEEDS[format])
        pytest.importorskip("onnxscript")
    return TARGETS[format].suffix


class Copier(base.Target):
    """Writes two files without a look at the model; answers what a test says."""

    suffix = ".copy"
    beside = (".more",)
    dtypes = ("float32",)

    def __init__(self, run):
        self.run = run

    def write(self, graph, path):
        path.write_text("main")
        path.with_suffix(".more").write_text("more")

    def load(self, path):
        assert path.with_suffix(".more").exists()
        return self.run


@pytest.fixture
def copier(monkeypatch):
    """`copier(run)` adds the format "copy", for which no graph is captured."""
    monkeypatch.setattr(sys.modules["tetravit.exports.export"], "_graph", lambda *_, **__: None)

    def add(run):
        monkeypatch.setitem(TARGETS, "copy", Copier(run))

    return add


def test_every_family_is_here():
    assert {family(name) for name in TOYS} == {family(name) for name in VARIANTS}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "format"),
    [
        *((name, "onnx") for name in TOYS),
        ("convit_tiny", "openvino"),
        ("gcvit_xxtiny", "openvino"),
        ("twins_svt_small", "torch"),
    ],
)
def test_every_family(name, format, tmp_path):
    done = export(classifier(name), tmp_path / f"model{suffix(format)}", fold=True)
    assert done.difference < 2e-5
    assert sorted(tmp_path.iterdir()) == sorted([*done.files, done.certificate_file])
    assert done.certificate.equal == {"top-1": 1.0}
    assert done.size == sum(file.stat().st_size for file in done.files)
    assert [shape[0] for shape in done.shapes] == [1, 3, 1, 3]
    assert len({shape[2:] for shape in done.shapes}) == 2


@pytest.mark.slow
@pytest.mark.parametrize(
    ("head", "format"),
    [
        ("retinanet", "openvino"),
        ("mask_rcnn", "onnx"),
        pytest.param("cascade", "openvino", marks=NIGHTLY),
        pytest.param("mask_rcnn", "openvino", marks=NIGHTLY),
    ],
)
def test_detectors_find_the_same(head, format, tmp_path):
    done = export(detector(head), tmp_path / f"model{suffix(format)}", size=(160, 192))
    assert done.objects > 20
    assert done.difference < 2e-5


@pytest.mark.slow
def test_a_region_without_area_is_nan_in_openvino():
    """The minimal case of docs/export.md: graphs of two-stage detectors replace the result by 0."""
    onnx, openvino = pytest.importorskip("onnx"), pytest.importorskip("openvino")
    make, kind = onnx.helper, onnx.TensorProto
    node = make.make_node(
        "RoiAlign", ["x", "r", "b"], ["y"], output_height=1, output_width=1, sampling_ratio=0
    )
    inputs = [
        make.make_tensor_value_info("x", kind.FLOAT, [1, 1, 4, 4]),
        make.make_tensor_value_info("r", kind.FLOAT, [1, 4]),
        make.make_tensor_value_info("b", kind.INT64, [1]),
    ]
    graph = make.make_graph([node], "g", inputs, [make.make_tensor_value_info("y", kind.FLOAT, [1, 1, 1, 1])])
    model = make.make_model(graph, opset_imports=[make.make_opsetid("", 18)], ir_version=9)
    given = [torch.ones(1, 1, 4, 4), torch.zeros(1, 4), torch.zeros(1, dtype=torch.int64)]
    core = openvino.Core()
    compiled = core.compile_model(core.read_model(model.SerializeToString()), "CPU")
    assert math.isnan(compiled([x.numpy() for x in given])[0].item())
    regions = torch.cat((given[2][:, None], given[1]), dim=1)
    assert roi_align(given[0], regions, 1, 1.0).item() == 0


def test_a_long_sum_of_openvino_is_within_the_tolerance():
    """The minimal case of docs/export.md: the first linear layer of a box branch, with its ReLU, for few regions."""
    onnx, openvino = pytest.importorskip("onnx"), pytest.importorskip("openvino")
    make, kind, count = onnx.helper, onnx.TensorProto, 256 * 7 * 7
    x = torch.randn(60, count, generator=torch.Generator().manual_seed(0)).abs()
    weight = torch.randn(128, count, generator=torch.Generator().manual_seed(1)) / count**0.5
    nodes = [make.make_node("Gemm", ["x", "w", "b"], ["z"], transB=1), make.make_node("Relu", ["z"], ["y"])]
    values = [
        make.make_tensor_value_info(name, kind.FLOAT, [60, side]) for name, side in (("x", count), ("y", 128))
    ]
    held = [
        onnx.numpy_helper.from_array(t.numpy(), name) for t, name in ((weight, "w"), (torch.zeros(128), "b"))
    ]
    graph = make.make_graph(nodes, "g", values[:1], values[1:], held)
    model = make.make_model(graph, opset_imports=[make.make_opsetid("", 18)], ir_version=9)
    core = openvino.Core()
    settings = {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": 1}
    compiled = core.compile_model(core.read_model(model.SerializeToString()), "CPU", settings)
    expected = (x.double() @ weight.double().T).relu()
    assert share(torch.from_numpy(compiled([x.numpy()])[0]).double(), expected) < 1e-5
    assert share((x @ weight.T).relu().double(), expected) < 2e-6


@pytest.mark.slow
def test_segmenters_and_backbones(tmp_path):
    head = {"head": "semantic_fpn", "num_classes": 3, "head_options": {"width": 8}}
    segmenter = create_segmenter("xcit_nano_12_p16", **head, **COLUMN)
    assert export(segmenter, tmp_path / "s.pt2", size=(96, 128)).difference < 2e-5
    path = tmp_path / f"maps{suffix('onnx')}"
    assert export(create_backbone("xcit_nano_12_p16", **COLUMN), path, size=96).difference < 2e-5
    import onnxruntime

    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    assert [x.name for x in session.get_outputs()] == ["map_4", "map_8", "map_16", "map_32"]


@pytest.mark.slow
def test_files_say_what_they_hold(tmp_path):
    formats = [name for name, target in TARGETS.items() if target.by_ending]
    model, paths = classifier(), {format: tmp_path / f"model{suffix(format)}" for format in formats}
    for path in paths.values():
        export(model, path, licence="CC0-1.0")
    import onnxruntime
    import openvino

    extra = {"tetravit.json": ""}
    torch.export.load(paths["torch"], extra_files=extra)
    session = onnxruntime.InferenceSession(paths["onnx"], providers=["CPUExecutionProvider"])
    (images,), (logits,) = session.get_inputs(), session.get_outputs()
    assert (images.name, images.shape) == ("images", ["batch", 3, "height", "width"])
    assert (logits.name, logits.shape) == ("logits", ["batch", 3])
    facts = {name: json.loads(text) for name, text in session.get_modelmeta().custom_metadata_map.items()}
    assert facts.pop("opset") >= 18
    kept = openvino.Core().read_model(paths["openvino"]).get_rt_info(["tetravit", "preprocess"])
    assert json.loads(kept.astype(str)) == facts["preprocess"]
    assert json.loads(extra["tetravit.json"]) == facts
    for format, path in paths.items():
        assert {k: v for k, v in TARGETS[format].facts(path).items() if k != "opset"} == facts
    assert facts["class_names"] == ["a", "b", "c"]
    assert facts["preprocess"]["size"] == 64
    assert facts["preprocess"]["mean"] == [0.485, 0.456, 0.406]
    assert facts["preprocess"]["interpolation"] == "bicubic"
    assert (facts["model"], facts["task"], facts["licence"]) == ("xcit_nano_12_p16", "classify", "CC0-1.0")


@pytest.mark.slow
@pytest.mark.parametrize("format", [name for name in TARGETS if "float16" in TARGETS[name].dtypes])
def test_lower_precision(format, tmp_path):
    model = classifier(dim=192)
    half = export(model, tmp_path / f"half{suffix(format)}", dtype="float16")
    assert 1e-6 < half.difference < 0.02
    assert half.certificate.tolerance == 0.02
    assert half.size < 3 * sum(p.numel() for p in model.parameters())


@pytest.mark.slow
def test_norms_and_softmax_of_an_onnx_file_in_half_precision_are_float32(tmp_path):
    onnx = pytest.importorskip("onnx")
    export(classifier("convit_tiny"), tmp_path / f"half{suffix('onnx')}", dtype="float16")
    graph = onnx.load(tmp_path / "half.onnx").graph
    types = {value.name: value.type.tensor_type.elem_type for value in graph.value_info}
    types |= {tensor.name: tensor.data_type for tensor in graph.initializer}
    whole = [node for node in graph.node if node.op_type in ("LayerNormalization", "Softmax")]
    assert {node.op_type for node in whole} == {"LayerNormalization", "Softmax"}
    given = {types[name] for node in whole for name in node.input if name in types}
    assert given == {onnx.TensorProto.FLOAT}
    products = [node for node in graph.node if node.op_type in ("MatMul", "Gemm", "Conv")]
    halves = [node for node in products if types.get(node.input[1]) == onnx.TensorProto.FLOAT16]
    assert len(halves) > 0.8 * len(products)  # ConViT multiplies by its positional tables in float32


@pytest.mark.slow
def test_a_file_appears_with_all_that_belongs_to_it(copier, tmp_path):
    model = classifier()
    copier(lambda inputs: [model(inputs[0])])
    done = export(model, tmp_path / "model.copy")
    assert [file.name for file in done.files] == ["model.copy", "model.more"]
    names = ["model.copy", "model.copy.certificate.json", "model.more"]
    assert sorted(file.name for file in tmp_path.iterdir()) == names
    assert done.difference < 1e-6


@pytest.mark.slow
def test_a_model_of_tiny_images_is_written_for_its_own_size(copier, tmp_path):
    model = classifier()
    model.input = replace(model.input, size=32)
    copier(lambda inputs: [model(inputs[0])])
    assert export(model, tmp_path / "model.copy").shapes[0] == (1, 3, 32, 32)


@pytest.mark.parametrize(("error", "shown"), [(1e-3, "1.0e-03"), (math.nan, "inf")])
def test_a_file_that_answers_otherwise_does_not_appear(copier, tmp_path, error, shown):
    model = classifier()
    (tmp_path / "model.copy").write_text("before")

    def run(inputs):
        return [model(inputs[0]) + (error if inputs[0].shape[2] > 64 else 0.0)]

    copier(run)
    with pytest.raises(ValueError) as caught:
        export(model, tmp_path / "model.copy", existing="replace")
    assert str(caught.value) == (
        f"The copy file differs from the model: by {shown} of the largest output at 1 x 91 x 125;"
        " allowed are 2e-05. Nothing was written."
    )
    assert [file.read_text() for file in tmp_path.iterdir()] == ["before"]


@pytest.mark.slow
def test_the_model_stays_as_it_is(copier, tmp_path):
    model = classifier().train()
    copier(lambda inputs: [model.eval()(inputs[0])])
    export(model, tmp_path / "model.copy", fold=True)
    assert all(parameter.requires_grad for parameter in model.parameters())
    assert isinstance(model.backbone.patch_embed[0][1], torch.nn.BatchNorm2d)


def found(**changes):
    """Two objects in one image, and one row of filling."""
    whole = {
        "boxes": torch.tensor([[[0.0, 0, 10, 10], [5, 5, 50, 100], [0, 0, 0, 0]]]),
        "scores": torch.tensor([[0.9, 0.5, 0.0]]),
        "labels": torch.tensor([[1, 2, 0]]),
        "valid": torch.tensor([[True, True, False]]),
    }
    return whole | changes


def test_detections_are_compared_with_the_nearest_of_their_class():
    swapped = {name: value[:, [1, 0, 2]] for name, value in found().items()}
    assert apart(found(), swapped, 0) == 0
    moved = found(boxes=found()["boxes"] + torch.tensor([0.0, 0, 0, 1]))
    assert apart(moved, found(), 0) == pytest.approx(0.01)
    assert apart(found(scores=found()["scores"] - 0.1), found(), 0) == pytest.approx(0.1)
    assert apart(found(labels=torch.tensor([[1, 1, 0]])), found(), 0) == math.inf
    assert apart(found(valid=torch.tensor([[True, False, False]])), found(), 0) == math.inf


def test_the_worst_shape_is_told():
    model = classifier()

    def run(inputs):
        return [model(inputs[0]) + 0.01 * len(inputs[0])]

    batches = batches_of(model, [drawing(0, model.input.mean, model.input.std)], (64, 64))
    assert compare(model, run, batches).worst.startswith("3 x ")


@pytest.mark.parametrize("name", ["boxes", "scores", "masks"])
@pytest.mark.parametrize("whose", ["file", "model"])
def test_what_is_no_number_is_infinitely_far(name, whose):
    masks = torch.full((1, 3, 2, 2), 0.5)
    whole, broken = found(masks=masks), found(masks=masks.clone())
    assert apart(broken, whole, 0) == 0
    broken[name][0, 1].view(-1)[0] = math.nan
    pair = (broken, whole) if whose == "file" else (whole, broken)
    assert apart(*pair, 0) == math.inf
    assert share(pair[0][name][0, 1], pair[1][name][0, 1]) == math.inf


@pytest.mark.parametrize(
    ("sides", "allowed", "sizes"),
    [
        ((224, 224), range(64, 4097), [(224, 224), (251, 285), (197, 163)]),
        ((64, 64), range(64, 4097), [(64, 64), (91, 125)]),
        ((4090, 80), range(64, 4097), [(4090, 80), (4063, 141), (4063, 64)]),
        ((320, 320), range(160, 4097, 32), [(320, 320), (352, 384), (288, 256)]),
        ((4096, 4096), range(160, 4097, 32), [(4096, 4096), (4064, 4032)]),
    ],
    ids=["usual", "smallest", "near the limit", "detector", "largest"],
)
def test_sizes_of_the_comparison_are_allowed(sides, allowed, sizes):
    assert _sizes(sides, allowed) == sizes
    assert all(side in allowed for size in sizes for side in size)


@pytest.mark.parametrize(
    ("name", "options", "text"),
    [
        (
            "m.onx",
            {},
            "The ending of a file says its format: .onnx (onnx), .pt2 (torch), .xml (openvino); got 'm.onx'.",
        ),
        ("m.onnx", {"format": "onx"}, "Unknown format 'onx'. Did you mean 'onnx'?"),
        ("m.onnx", {"format": "torch"}, "Files of the format 'torch' end in .pt2; got 'm.onnx'."),
        (
            "m.onnx",
            {"dtype": "bfloat16"},
            "dtype takes one of float32, float16 for onnx; got 'bfloat16'.",
        ),
        ("m.pt2", {"size": 32}, "An exported classifier takes sides of 64 to 4096 pixels; got 32x32."),
        (
            "m.pt2",
            {"size": (1, 2, 3)},
            "size takes a side in pixels, or (height, width); got (1, 2, 3).",
        ),
        ("m.pt2", {"size": 96.0}, "size takes a side in pixels, or (height, width); got 96.0."),
    ],
    ids=["ending", "format", "other", "dtype", "size", "three", "fraction"],
)
def test_mistakes(name, options, text, tmp_path):
    with pytest.raises(ValueError) as caught:
        export(classifier(), tmp_path / name, **options)
    assert str(caught.value) == text
    assert list(tmp_path.iterdir()) == []


def test_a_place_that_cannot_be_written_to(tmp_path):
    with pytest.raises(ValueError) as caught:
        export(classifier(), tmp_path / "no" / "m.pt2")
    assert str(caught.value) == f"There is no folder '{tmp_path}/no'."
    (tmp_path / "m.bin").write_text("precious")
    with pytest.raises(ValueError) as caught:
        export(classifier(), tmp_path / "m.xml")
    assert str(caught.value) == (
        f"{tmp_path}/m.bin is there already; --force, in Python existing='replace', writes over it."
    )
    (tmp_path / "m.xml").write_text("precious")
    with pytest.raises(ValueError) as caught:
        export(classifier(), tmp_path / "m.xml")
    assert str(caught.value) == (
        f"{tmp_path}/m.xml and {tmp_path}/m.bin are there already; --force, in Python existing='replace',"
        " writes over them."
    )
    (tmp_path / "f.bin").mkdir()
    with pytest.raises(ValueError) as caught:
        export(classifier(), tmp_path / "f.xml", existing="replace")
    assert str(caught.value) == f"{tmp_path}/f.bin is a folder; a file is to be written there."


@pytest.mark.slow
def test_what_another_wrote_in_the_meantime_stays(copier, tmp_path):
    model = classifier()

    def run(inputs):
        (tmp_path / "m.more").write_text("precious")
        return [model(inputs[0])]

    copier(run)
    with pytest.raises(ValueError, match=r"m\.more is there already; --force, "):
        export(model, tmp_path / "m.copy")
    assert [file.read_text() for file in tmp_path.iterdir()] == ["precious"]


def test_an_optimised_model_is_refused(tmp_path):
    model = classifier()
    model.optimized = "eager"
    with pytest.raises(ValueError) as caught:
        export(model, tmp_path / "m.pt2")
    assert str(caught.value) == "An optimised model is not exported; export the model it was made of."


@pytest.mark.parametrize("step", ["write", "load", "run"])
def test_what_the_program_of_a_format_says_is_one_line(copier, tmp_path, monkeypatch, step):
    def refuse(*_, **__):
        raise RuntimeError("Exception from src/core.cpp:1:\nout of luck.\nfurther")

    copier(refuse)
    if step != "run":
        monkeypatch.setattr(TARGETS["copy"], step, refuse)
    with pytest.raises(ValueError) as caught:
        export(classifier(), tmp_path / "m.copy")
    assert str(caught.value) == "The format 'copy' cannot hold this model: out of luck."
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_is_told_as_such(copier, tmp_path, monkeypatch):
    def refuse(*_, **__):
        raise OSError(28, "No space left on device")

    copier(refuse)
    monkeypatch.setattr(TARGETS["copy"], "write", refuse)
    with pytest.raises(OSError, match="No space left"):
        export(classifier(), tmp_path / "m.copy")


def test_a_missing_package_is_named_with_its_cure(tmp_path, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ValueError) as caught:
        export(classifier(), tmp_path / "m.onnx")
    assert str(caught.value) == (
        "The format 'onnx' cannot be written: it needs the extra: pip install 'tetravit[onnx]'."
    )


def test_detectors_take_sides_that_32_divides(tmp_path):
    with pytest.raises(ValueError) as caught:
        export(detector("retinanet"), tmp_path / "m.pt2", size=(160, 170))
    assert str(caught.value) == (
        "An exported detector takes sides of 160 to 4096 pixels, in steps of 32; got 160x170."
    )


def test_what_a_target_cannot_hold_is_told(copier, tmp_path, monkeypatch):
    from tetravit.runtimes.base import CannotRun

    def refuse(*_, **__):
        raise CannotRun("the graph has no ONNX form: luck")

    copier(lambda inputs: inputs)
    monkeypatch.setattr(sys.modules["tetravit.exports.export"], "_graph", refuse)
    with pytest.raises(ValueError) as caught:
        export(classifier(), tmp_path / "m.copy")
    assert str(caught.value) == "The format 'copy' cannot hold this model: the graph has no ONNX form: luck."
    assert list(tmp_path.iterdir()) == []


def test_pictures_are_prepared_as_the_model_expects():
    from tetravit.exports.compare import pictures

    model = classifier()
    usual = pictures(model, 2, 64, 96)
    assert usual.shape == (2, 3, 64, 96)
    model.input = replace(model.input, mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))
    plain = pictures(model, 2, 64, 96)
    assert 0 <= plain.min() < plain.max() <= 1
    assert usual.min() < 0
