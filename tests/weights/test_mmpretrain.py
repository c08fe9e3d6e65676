"""Twins as mmpretrain names them."""

import pytest
import torch
from authors import golden

from tetravit.models import create_model
from tetravit.weights import LAYOUTS

THEIRS = LAYOUTS["twins"]["mmpretrain"]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["twins_pcpvt_small", "twins_svt_small"])
def test_a_file_of_mmpretrain_is_recognised_and_gives_the_authors_answers(name, tmp_path):
    authors = golden(name)
    ours = LAYOUTS["twins"]["official"].to_ours(authors.state())
    theirs = THEIRS.to_theirs(ours)
    assert {
        "backbone.patch_embeds.1.projection.weight",
        "backbone.stages.0.1.ffn.layers.0.0.bias",
        "backbone.stages.3.0.norm1.weight",
        "backbone.position_encodings.2.proj.weight",
        "backbone.norm_after_stage3.bias",
        "head.fc.weight",
    } <= theirs.keys()
    back = THEIRS.to_ours(theirs)
    assert back.keys() == ours.keys()
    assert all(torch.equal(back[key], ours[key]) for key in ours)
    torch.save({"meta": {}, "state_dict": theirs}, tmp_path / "mmpretrain.pth")
    model = create_model(name, weights=tmp_path / "mmpretrain.pth").eval()
    assert model.report.layout == "mmpretrain"
    size = authors.sizes[0]
    with torch.no_grad():
        logits = model(authors.images(size))
    torch.testing.assert_close(logits, authors.answer("logits", size), atol=5e-5, rtol=0)
