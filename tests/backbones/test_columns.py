"""ConViT and DeiT, whose maps all have the stride of the patches: what they share through layers/vit.py."""

import pytest
import torch

from tetravit.models import create_model

NAMES = ["convit_tiny", "deit_tiny"]


@pytest.fixture(scope="module", params=NAMES)
def model(request):
    torch.manual_seed(0)
    return create_model(request.param, dim=32, num_heads=4, num_classes=0).eval()


def test_maps_are_the_patches_after_four_blocks(model):
    images = torch.randn(1, 3, 64, 96)
    outputs = []
    hooks = [
        block.register_forward_hook(lambda _, __, out: outputs.append(out)) for block in model.backbone.blocks
    ]
    with torch.no_grad():
        maps = model.feature_maps(images)
    for hook in hooks:
        hook.remove()
    for i, level in zip((3, 5, 7, 11), maps, strict=True):
        patches = outputs[i][:, -24:]  # without the class token
        assert torch.equal(level, patches.mT.unflatten(2, (4, 6)))


@pytest.mark.parametrize(
    ("name", "size", "rows"),
    [("convit_tiny", (96, 200), 6 * 13), ("convit_tiny", 384, 24 * 24), ("deit_tiny", 384, 1 + 24 * 24)],
)
def test_image_size_sets_the_grid_of_the_positions(name, size, rows):
    with torch.device("meta"):
        model = create_model(name, num_classes=0, image_size=size)
    assert model.backbone.pos_embed.table.shape == (1, rows, 192)


@pytest.mark.parametrize("name", NAMES)
def test_positions_and_class_token_are_never_decayed(name):
    with torch.device("meta"):
        model = create_model(name)
    assert model.no_weight_decay() == {"backbone.pos_embed.table", "backbone.cls_token.token"}
