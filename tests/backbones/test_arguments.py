"""Constructor arguments that a backbone refuses, each with its message."""

import math

import pytest
import torch

from tetravit.backbones.convit import ConViT
from tetravit.backbones.deit import DeiT
from tetravit.backbones.gcvit import GCViT
from tetravit.backbones.twins import Twins
from tetravit.backbones.xcit import XCiT

TWINS = {"dims": (8, 16, 24, 32), "depths": (1, 1, 1, 1), "num_heads": (1, 2, 2, 4), "mlp_ratios": (2,) * 4}
TWINS |= {"pattern": ("LG",) * 4}
STRENGTH = "locality_strength is a number from 0 up; local_init=False starts at random; got "
LETTERS = "pattern has one string of the letters L and G per stage; got "
STAGES = "is 4 whole numbers from 1 up, one per stage; got "
WRONG = [
    (XCiT, {"patch_size": 12}, "patch_size of XCiT is 8 or 16, or any with stem='linear'; got 12."),
    (XCiT, {"dim": 100}, "dim must be a multiple of num_heads; got dim=100, num_heads=8."),
    (ConViT, {"dim": 100}, "dim must be a multiple of num_heads; got dim=100, num_heads=9."),
    (ConViT, {"patch_size": 0}, "patch_size is 1 pixel or more; got 0."),
    (ConViT, {"num_gpsa": 12}, "num_gpsa is between 0 and 11: the class token needs a block; got 12."),
    (ConViT, {"num_gpsa": -1}, "num_gpsa is between 0 and 11: the class token needs a block; got -1."),
    (ConViT, {"locality_strength": -1.0}, STRENGTH + "-1.0."),
    (ConViT, {"locality_strength": math.nan}, STRENGTH + "nan."),
    (DeiT, {"dim": 100}, "dim must be a multiple of num_heads; got dim=100, num_heads=6."),
    (DeiT, {"patch_size": 0}, "patch_size is 1 pixel or more; got 0."),
    (GCViT, {"dim": 65}, "dim must be a multiple of num_heads; got dim=65, num_heads=2."),
    (GCViT, {"depths": (2, 2, 2)}, f"depths {STAGES}(2, 2, 2)."),
    (GCViT, {"num_heads": (2, 4, 8, 0)}, f"num_heads {STAGES}(2, 4, 8, 0)."),
    (GCViT, {"window_size": (7, 7)}, f"window_size {STAGES}(7, 7)."),
    (GCViT, {"window_size": (7, 7, 14, 0)}, f"window_size {STAGES}(7, 7, 14, 0)."),
    (GCViT, {"window_size": (7, 7, 14.0, 7)}, f"window_size {STAGES}(7, 7, 14.0, 7)."),
    (GCViT, {"query_pooling": "max"}, "query_pooling is 'keep', 'pool' or None; got 'max'."),
    (Twins, {"num_heads": (3, 2, 2, 4)}, "dim must be a multiple of num_heads; got dim=8, num_heads=3."),
    (
        Twins,
        {"depths": (1, 1, 1)},
        "dims, depths, num_heads, mlp_ratios, sr_ratios and pattern have one entry per stage; "
        "got 4, 3, 4, 4, 4, 4 entries.",
    ),
    (Twins, {"pattern": ("L", "LG", "LS", "G")}, LETTERS + "('L', 'LG', 'LS', 'G')."),
    (Twins, {"pattern": ("L", "LG", "", "G")}, LETTERS + "('L', 'LG', '', 'G')."),
    (Twins, {"pattern": "LGLG"}, LETTERS + "'LGLG'."),
    (Twins, {"window_mask": "both"}, "window_mask takes one of none, segmentation; got 'both'."),
    (Twins, {"window_size": 0}, "A window side is at least 1 token; got window_size=0."),
]


@pytest.mark.parametrize(("make", "arguments", "message"), WRONG)
def test_wrong_arguments_of_a_constructor(make, arguments, message):
    options = {**TWINS, **arguments} if make is Twins else arguments
    with torch.device("meta"), pytest.raises(ValueError) as error:
        make(**options)
    assert str(error.value) == message
