"""`mask_padding=True`: what windows are padded with reaches no embedding, and crops cannot be told by it."""

import pytest
import torch

from tetravit.layers.window import padding, windows
from tetravit.models import create_model

pytestmark = pytest.mark.slow  # whole runs and other processes

FAMILIES = {"gcvit_xxtiny": "tetravit.backbones.gcvit", "twins_svt_small": "tetravit.backbones.twins"}


def build(name, **options):
    torch.manual_seed(0)
    model = create_model(name, num_classes=0, **options).backbone.eval()
    with torch.no_grad():
        for p in model.parameters():  # biases of projections, which are the keys and values of padding
            p.add_(0.05 * torch.randn_like(p))
    return model


def padded_with(value):
    """`windows` whose padding is `value` instead of zeros."""

    def cut(x, size):
        x_windows, padded = windows(x, size)
        below, right = padding(x_windows, size, (x.shape[1], x.shape[2]))
        return x_windows.masked_fill((below | right)[:, :, None], value), padded

    return cut


@pytest.mark.parametrize("size", [(96, 96), (64, 112)], ids=str)
@pytest.mark.parametrize("name", FAMILIES)
def test_an_embedding_does_not_depend_on_the_padding(name, size, monkeypatch):
    images = torch.randn(2, 3, *size)
    published, masked = build(name), build(name, mask_padding=True)
    with torch.no_grad():
        before = [model(images) for model in (published, masked)]
        monkeypatch.setattr(f"{FAMILIES[name]}.windows", padded_with(5.0))
        after = [model(images) for model in (published, masked)]
    assert not torch.allclose(before[0], after[0], atol=1e-3)
    torch.testing.assert_close(before[1], after[1], atol=1e-6, rtol=0)


def test_larger_padding_changes_nothing():
    """Twins has no table of a window's size: one window of 7 or of 9 holds a map of 6 x 6."""
    seven, nine = (build("twins_svt_small", mask_padding=True, window_size=w) for w in (7, 9))
    attention = [model.blocks[0][0].attn for model in (seven, nine)]
    x = torch.randn(1, 6, 6, 64)
    with torch.no_grad():
        torch.testing.assert_close(attention[0](x), attention[1](x), atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("name", FAMILIES)
def test_nothing_changes_where_nothing_is_padded(name):
    images = torch.randn(1, 3, 224, 224)
    with torch.no_grad():
        torch.testing.assert_close(
            build(name, mask_padding=True)(images), build(name)(images), atol=1e-5, rtol=1e-5
        )


@pytest.mark.parametrize("name", FAMILIES)
def test_all_weights_lie_on_the_image(name):
    images = torch.randn(1, 3, 96, 64)
    with torch.no_grad():
        for record in build(name, mask_padding=True).attention(images):
            torch.testing.assert_close(record.seen, torch.ones_like(record.seen))


@pytest.mark.parametrize("name", FAMILIES)
def test_gradients_pass_the_mask(name):
    model = build(name, mask_padding=True).train()
    model(torch.randn(2, 3, 96, 64)).square().sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


def test_pcpvt_takes_the_option_and_has_no_windows():
    images = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        masked = build("twins_pcpvt_small", mask_padding=True)
        assert torch.equal(masked(images), build("twins_pcpvt_small")(images))
