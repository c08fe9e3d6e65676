"""Every head gives the recorded losses and predictions, at a width that a plain `pytest` can afford.

The figures come from the heads that equal mmdetection's and mmsegmentation's; see the tests beside this one.
"""

import json
from pathlib import Path

import pytest
from tests.heads.small import OPTIONS, figures

from tetravit.heads import heads_of

RECORDED = json.loads((Path(__file__).parents[1] / "golden" / "small_heads.json").read_text())


def test_every_head_over_maps_is_here():
    assert OPTIONS.keys() == RECORDED.keys() == {*heads_of("detect"), *heads_of("segment")} - LARGE


LARGE = {"dino_detr"}  # compared with its authors' code in a test of its own


@pytest.mark.parametrize("name", OPTIONS)
def test_the_recorded_figures(name):
    got = figures(name)
    assert got.keys() == RECORDED[name].keys()
    for key, want in RECORDED[name].items():
        assert got[key] == pytest.approx(want, rel=1e-3, abs=1e-3), key
