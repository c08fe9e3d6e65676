"""int8: images to calibrate with, predictions that stay equal, a file that is refused where it is slower."""

import json

import pytest
import torch
from PIL import Image
from tests.exports.test_exports import classifier, detector
from tests.toys import COLUMN

from tetravit.data.shapes import draw
from tetravit.exports import export, verify_export
from tetravit.exports.parts import int8
from tetravit.models import create_backbone, create_segmenter, save
from tetravit.models.portable import flat


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Twelve drawings, without any layout."""
    made = tmp_path_factory.mktemp("images")
    for i in range(12):
        Image.fromarray(draw(i, size=64).image).save(made / f"{i}.png")
    return made


def test_images_of_a_folder_and_of_a_set(folder):
    found = int8.calibration_images(classifier(), folder)
    assert (len(found.pictures), found.text) == (12, f"12 images of the folder {folder}")
    assert found.pictures[0].shape == (3, 64, 64)
    digits = int8.calibration_images(classifier(), "digits")
    assert (len(digits.pictures), digits.text) == (300, "300 images of digits")


def coco(folder):
    (folder / "annotations").mkdir()
    (folder / "annotations" / "instances_val.json").write_text("{}")
    return folder


@pytest.mark.parametrize(
    ("model", "data", "text"),
    [
        (
            classifier,
            lambda _: None,
            "int8 needs images to calibrate with: --calibrate DIR, in Python calibrate=DIR.",
        ),
        (
            classifier,
            lambda _: "digts",
            "--calibrate takes a folder of images or a data set; got 'digts'. Did you mean 'digits'?",
        ),
        (classifier, lambda path: path, "There are no images in the folder '{0}'."),
        (
            lambda: detector("retinanet"),
            lambda _: "digits",
            "Images to calibrate with are of the model's task: digits is for classify; the model is a detector"
            " (detect).",
        ),
        (
            classifier,
            coco,
            "Images to calibrate with are of the model's task: {0} (coco) is for detect; the model is a classifier"
            " (classify).",
        ),
    ],
    ids=["none", "unknown", "empty", "set of another task", "folder of another task"],
)
def test_images_that_do_not_fit(tmp_path, model, data, text):
    with pytest.raises(ValueError) as caught:
        int8.calibration_images(model(), data(tmp_path))
    assert str(caught.value) == text.format(tmp_path)


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"calibrate": "digits"}, "calibrate, --calibrate, goes with int8; got dtype 'float32'."),
        (
            {"dtype": "int8", "calibrate": "digits", "max_drop": 2.0},
            "max_drop is a share of predictions, 0 to 1; got 2.",
        ),
    ],
    ids=["float32", "max_drop"],
)
def test_options_that_do_not_fit(tmp_path, options, text):
    pytest.importorskip("nncf")
    pytest.importorskip("openvino")
    with pytest.raises(ValueError) as caught:
        export(classifier(), tmp_path / "m.xml", **options)
    assert str(caught.value) == text
    assert list(tmp_path.iterdir()) == []


def test_without_the_extra(tmp_path, monkeypatch):
    pytest.importorskip("openvino")
    monkeypatch.setattr(
        int8, "needs", lambda package, extra: f"it needs the extra: pip install 'tetravit[{extra}]'"
    )
    with pytest.raises(ValueError) as caught:
        export(classifier(), tmp_path / "m.xml", dtype="int8", calibrate="digits")
    assert str(caught.value) == (
        "The format 'openvino' cannot be written: it needs the extra: pip install 'tetravit[int8]'."
    )


def batches(model, count=2, height=64, width=96):
    return [(x, *model.other_inputs(x)) for x in torch.randn(count, 1, 3, height, width)]


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["classify", "segment", "detect"])
def test_the_share_of_equal_predictions(kind):
    head = {"head": "semantic_fpn", "num_classes": 3, "head_options": {"width": 8}}
    model = {
        "classify": classifier,
        "segment": lambda: create_segmenter("xcit_nano_12_p16", **head, **COLUMN).eval(),
        "detect": lambda: detector("retinanet"),
    }[kind]()
    given = batches(model, height=160, width=160) if kind == "detect" else batches(model)
    predictions = int8.ReferencePredictions(model, given)

    def same(inputs):
        return [x.detach() for x in flat(model(*inputs))]

    assert predictions.share(same) == 1

    def other(inputs):
        found = same(inputs)
        if kind == "detect":
            labels = model.output_names.index("labels")
            return [x + 1 if i == labels else x for i, x in enumerate(found)]
        return [-found[0]]

    assert predictions.share(other) == 0


def test_features_are_no_predictions():
    model = create_backbone("xcit_nano_12_p16", **COLUMN)
    with pytest.raises(ValueError) as caught:
        int8.ReferencePredictions(model, [])
    assert str(caught.value) == (
        "int8 is controlled by the predictions of a model, and features are none; export a classifier, segmenter or"
        " detector."
    )


@pytest.mark.parametrize(
    ("rates", "text"),
    [
        ((30.0, 20.0, 10.0), ""),
        (
            (20.0, 30.0, 10.0),
            "int8 is not faster than bfloat16 on this machine: 20 and 30 images/s at 64x96, batch 1",
        ),
        (
            (20.0, 10.0, 30.0),
            "int8 is not faster than float32 on this machine: 20 and 30 images/s at 64x96, batch 1",
        ),
    ],
)
def test_a_slower_file_is_of_no_use(rates, text):
    assert int8.refusal(int8.Timed(*rates, (1, 3, 64, 96))) == text


def test_a_slower_file_is_refused(tmp_path, monkeypatch):
    shape = (1, 3, 64, 64)
    monkeypatch.setattr(int8, "timed", lambda *_: int8.Timed(10.0, 20.0, 15.0, shape))
    monkeypatch.setattr(int8, "quantize", lambda *_: 0.75)
    for ending in (".xml", ".bin"):
        (tmp_path / f"m{ending}").write_text("graph")
    given = {
        "model": classifier(),
        "images": int8.Images((torch.zeros(3, 64, 64),), "a photograph"),
        "max_drop": 0.5,
    }
    with pytest.raises(ValueError) as caught:
        int8.apply(tmp_path / "m.xml", sides=(64, 64), slower="refuse", **given)
    assert str(caught.value) == (
        "int8 is not faster than bfloat16 on this machine: 10 and 20 images/s at 64x64, batch 1. --accept-slower, in"
        " Python slower='accept', writes it. Nothing was written."
    )
    done = int8.apply(tmp_path / "m.xml", sides=(64, 64), slower="accept", **given)
    assert str(done) == (
        "int8: calibrated on a photograph, 75 % of the predictions for 1 of them, held out, are those of the model;"
        " 10 images/s, in bfloat16 20, in float32 15 (64x64, batch 1)"
    )


@pytest.mark.slow
def test_a_quantized_file(tmp_path, monkeypatch, folder):
    """Products and convolutions are in 8 bits; the file agrees at sizes that it was not calibrated for."""
    pytest.importorskip("nncf")
    openvino = pytest.importorskip("openvino")
    pytest.importorskip("onnxscript")
    monkeypatch.setattr(int8, "timed", lambda *_: int8.Timed(20.0, 10.0, 15.0, (1, 3, 64, 64)))
    given = {"dtype": "int8", "calibrate": folder, "max_drop": 0.5}
    done = export(classifier(dim=64), tmp_path / "m.xml", **given)
    model = openvino.Core().read_model(tmp_path / "m.xml")
    assert sum(op.get_type_name() == "FakeQuantize" for op in model.get_ops()) > 20
    assert json.loads(model.get_rt_info(["tetravit", "dtype"]).astype(str)) == "int8"
    assert sorted(file.name for file in tmp_path.iterdir()) == ["m.bin", "m.xml", "m.xml.certificate.json"]
    paper = done.certificate
    assert (paper.precision, paper.tolerance) == ("int8", 1.0)
    assert 1e-4 < paper.difference < 0.2
    assert {shape[2:] for shape in paper.shapes} == {(64, 64), (91, 125)}
    assert paper.notes[-1].startswith(f"int8: calibrated on 12 images of the folder {folder}, ")


@pytest.mark.nightly
@pytest.mark.timeout(1800)
def test_speeds_are_measured(tmp_path):
    pytest.importorskip("openvino")
    export(classifier(), tmp_path / "m.xml")
    found = int8.timed(tmp_path / "m.xml", tmp_path / "m.xml", [torch.zeros(1, 3, 64, 64)])
    assert found.shape == (1, 3, 64, 64)
    assert 0.5 < found.int8 / found.float32 < 2


@pytest.mark.nightly
@pytest.mark.timeout(1800)
def test_changed_predictions_are_refused(tmp_path, folder):
    """A model whose predictions are near each other: no drop is allowed, one is found, or none is left to return."""
    pytest.importorskip("nncf")
    model = classifier(dim=64)
    weights = tmp_path / "w.safetensors"
    save(model, weights)
    given = {"dtype": "int8", "calibrate": folder, "max_drop": 0.0, "slower": "accept", "weights": weights}
    done = export(model, tmp_path / "m.xml", **given)
    assert " 100 % of the predictions " in done.certificate.notes[-1]
    assert done.certificate.quantized.equal == 1
    checked = verify_export(tmp_path / "m.xml")  # the model is exported again, in float32, to be timed
    assert checked.problem == ""
    rows = {row.name: row.here for row in checked.rows}
    assert rows["equal on 4 images held out"] == "100.00 %"
    assert len(rows["images/s in int8, bfloat16, float32"].split(", ")) == 3
