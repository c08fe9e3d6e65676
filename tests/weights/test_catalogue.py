"""The catalogue: every published file has its row, every row leads somewhere."""

from collections import Counter

import pytest

from tetravit.models import family, list_models
from tetravit.structures import Preprocess
from tetravit.weights import CHECKPOINTS, LAYOUTS
from tetravit.weights.base import Source
from tetravit.weights.layouts import KEY_MAPS
from tetravit.weights.xcit import METRICS

TEACHER = "regnety_160"  # a network of another package, listed because distillation needs its weights


def test_every_published_file_has_a_row():
    counts = Counter((row.model.split("_")[0], row.task, row.head) for row in CHECKPOINTS.values())
    assert counts == {
        ("xcit", "classify", None): 42,
        ("xcit", "embed", None): 4,
        ("xcit", "detect", "mask_rcnn"): 8,
        ("xcit", "segment", "semantic_fpn"): 8,
        ("xcit", "segment", "upernet"): 8,
        ("convit", "classify", None): 3,
        ("gcvit", "classify", None): 11,
        ("twins", "classify", None): 6,
        ("twins", "segment", "upernet"): 6,
        ("deit", "classify", None): 8,
        (TEACHER.split("_")[0], "classify", None): 1,
    }


@pytest.mark.parametrize("name", CHECKPOINTS)
def test_a_row_is_whole(name):
    row = CHECKPOINTS[name]
    assert row.name == name
    if row.model != TEACHER:
        assert row.model in list_models()
        known = {*LAYOUTS[family(row.model)], *KEY_MAPS.get(row.head, {})}
        assert {source.layout for source in row.sources} <= known
    assert all(source.url.startswith("https://") for source in row.sources)
    assert row.sources
    assert row.data
    assert row.published_in
    assert row.commercial is ("NC" not in row.licence)
    dense = row.task in ("detect", "segment")
    assert row.preprocess is not None
    assert (row.preprocess.mode == "fit") is dense
    assert (row.head is not None) is dense
    assert all(0 < value < 100 for value in (*row.published.values(), *row.measured.values()))
    if "top1" in row.measured:
        assert abs(row.measured["top1"] - row.published["top1"]) < 0.3


def test_urls_are_not_repeated():
    urls = [source.url for row in CHECKPOINTS.values() for source in row.sources]
    assert len(set(urls)) == len(urls)


def test_some_rows_say_what_the_sources_say():
    row = CHECKPOINTS["xcit_large_24_p8.in1k_dist_384"]
    assert row.sources[0].url == "https://dl.fbaipublicfiles.com/xcit/xcit_large_24_p8_384_dist.pth"
    assert row.sources[0].entry == "model"
    assert row.published == {"top1": 86.0}
    assert row.measured == dict(
        zip(METRICS, (86.024, 97.690, 89.897, 76.75, 59.893, 56.373, 42.864), strict=True)
    )
    assert row.preprocess == Preprocess(size=384, crop=1.0)
    row = CHECKPOINTS["convit_tiny.in1k"]
    assert row.preprocess == Preprocess(size=224, crop=0.875)
    assert row.measured["top1"] == 73.14
    row = CHECKPOINTS["gcvit_large_512.in21k_in1k"]
    assert row.preprocess == Preprocess(size=512, crop=1.0, mode="squash")
    assert not row.commercial
    row = CHECKPOINTS["deit_base_distilled.in1k_dist_384"]
    assert row.sources[0].url.endswith("/deit/deit_base_distilled_patch16_384-d0272ac0.pth")
    assert (row.options, row.published) == ({"image_size": 384}, {"top1": 85.2})
    assert row.preprocess == Preprocess(size=384, crop=0.875)
    row = CHECKPOINTS["xcit_medium_24_p8.coco_mask_rcnn"]
    assert row.sources[0].url == "https://dl.fbaipublicfiles.com/xcit/coco/maskrcnn_xcit_medium_24_p8.pth"
    assert row.published == {"box_ap": 48.5, "mask_ap": 43.7}
    row = CHECKPOINTS["twins_pcpvt_small.in1k"]
    assert [source.manual for source in row.sources] == [True, False, False]
    assert row.measured == {"top1": 81.116, "real": 86.65, "v2": 70.47}
    assert row.sources[2].sha256.startswith("ef23c132")
    assert len(row.sources[2].sha256) == 64
    assert "twins-pcpvt-small_3rdparty_8xb128_in1k_20220126-ef23c132.pth" in row.sources[2].url
    assert CHECKPOINTS["xcit_small_12_p16.dino"].num_classes == 0


def test_only_drive_needs_a_browser():
    only = [name for name, row in CHECKPOINTS.items() if all(source.manual for source in row.sources)]
    assert only == [
        "gcvit_large.in21k_in1k",
        *(n for n in CHECKPOINTS if n.startswith("twins") and "ade" in n),
    ]
    assert not Source("https://example.org/x", "official").manual
