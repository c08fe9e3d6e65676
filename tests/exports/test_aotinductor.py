"""A package of AOTInductor: compiled for every batch and size, verified, and used for predictions."""

import pytest
import torch
from tests.exports.test_exports import classifier

import tetravit
from tetravit.exports import export, load_program, verify_export
from tetravit.exports.aotinductor import kind_of_processor


@pytest.mark.nightly
@pytest.mark.timeout(1800)
def test_a_compiled_package_predicts_as_its_model(tmp_path):
    model, path = classifier(depth=1), tmp_path / "m.pt2"
    done = export(model, path, "aotinductor")
    assert done.difference < 2e-5
    assert {shape[0] for shape in done.shapes} == {1, 3}
    assert len({shape[2:] for shape in done.shapes}) == 2
    checked = verify_export(path, trust=True)
    assert (checked.problem, checked.weights) == ("", "")
    program = load_program(path, trust=True)
    image = torch.randint(0, 256, (3, 70, 90), dtype=torch.uint8)
    ours, theirs = (tetravit.predict(x, image).guesses for x in (program, model))
    assert [g.index for g in ours] == [g.index for g in theirs]
    assert ours[0].score == pytest.approx(theirs[0].score, abs=1e-5)


def test_a_type_that_a_package_does_not_hold(tmp_path):
    with pytest.raises(ValueError) as caught:
        export(classifier(), tmp_path / "m.pt2", "aotinductor", dtype="float16")
    assert str(caught.value) == "dtype takes one of float32, bfloat16 for aotinductor; got 'float16'."


def test_without_a_compiler_nothing_is_written(tmp_path, monkeypatch):
    monkeypatch.setattr("shutil.which", lambda name: None)
    with pytest.raises(ValueError) as caught:
        export(classifier(), tmp_path / "m.pt2", "aotinductor")
    assert str(caught.value) == (
        "The format 'aotinductor' cannot be written: it needs a C++ compiler, such as g++."
    )
    assert list(tmp_path.iterdir()) == []


def test_the_kind_of_a_processor_has_three_parts():
    assert len(kind_of_processor().split()) >= 3
