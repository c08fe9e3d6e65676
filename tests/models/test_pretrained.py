"""The backbone of a dense model begins with the weights of a classifier."""

import pytest
import torch

from tetravit.models import create_detector, create_model, create_segmenter

pytestmark = pytest.mark.slow  # whole runs and other processes


@pytest.mark.parametrize("create", [create_detector, create_segmenter])
@pytest.mark.parametrize("name", ["xcit_nano_12_p16", "deit_tiny", "twins_svt_small", "gcvit_xxtiny"])
def test_the_backbone_takes_the_weights_of_a_classifier(name, create, capsys):
    classifier = create_model(name)
    state = classifier.state_dict()
    dense = create(name, backbone_weights=state).state_dict()
    same = [k for k, v in state.items() if k.startswith("backbone.") and dense[k].shape == v.shape]
    resized = [k for k, v in state.items() if k.startswith("backbone.") and dense[k].shape != v.shape]
    assert len(same) > 100
    assert all(torch.equal(dense[k], state[k]) for k in same)
    assert all("bias.table" in k for k in resized)  # GC ViT's dense windows are larger
    assert "head.weight (no head)" in capsys.readouterr().err


def test_weights_of_another_model_are_refused():
    with pytest.raises(ValueError, match="does not fit"):
        create_detector("xcit_nano_12_p16", backbone_weights=create_model("deit_tiny").state_dict())
