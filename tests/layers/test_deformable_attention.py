import math

import numpy as np
import pytest
import torch
from detr.inputs import Golden, rand, randn, ring, value

from tetravit.layers.deformable_attention import DeformableAttention, sample_by_grid, sample_by_rows

SHAPES = [(5, 7), (3, 4), (2, 2)]
TOKENS = sum(h * w for h, w in SHAPES)


def inputs(dtype=torch.float64, spread=1.5):
    """Values (2, N, 2, 3), points (2, 6, 2, 3, 2, 2) of which some lie outside, weights."""
    torch.manual_seed(0)
    value = torch.randn(2, TOKENS, 2, 3, dtype=dtype)
    sides = torch.tensor([[w, h] for h, w in SHAPES], dtype=dtype)[:, None]
    points = (torch.rand(2, 6, 2, 3, 2, 2, dtype=dtype) * spread - spread / 6) * sides - 0.5
    return value, points, torch.randn(2, 6, 2, 6, dtype=dtype)


def naive(values, points, weights, shapes):
    """One point after another, one neighbour after another."""
    batch, queries, heads, levels, count = points.shape[:5]
    starts = [sum(h * w for h, w in shapes[:i]) for i in range(levels)]
    out = values.new_zeros(batch, queries, heads, values.shape[3])
    for b, q, h, i, p in np.ndindex(batch, queries, heads, levels, count):
        (height, width), (x, y) = shapes[i], points[b, q, h, i, p]
        left, top = math.floor(x.item()), math.floor(y.item())
        for row, column in ((top, left), (top, left + 1), (top + 1, left), (top + 1, left + 1)):
            if 0 <= row < height and 0 <= column < width:
                share = (1 - (x - column).abs()) * (1 - (y - row).abs())
                pixel = values[b, starts[i] + row * width + column, h]
                out[b, q, h] = out[b, q, h] + weights[b, q, h, i * count + p] * share * pixel
    return out.flatten(2)


@pytest.mark.parametrize("form", [sample_by_grid, sample_by_rows])
def test_both_forms_are_the_naive_loop_in_float64_gradients_too(form):
    given = [x.requires_grad_() for x in inputs()]
    want, got = naive(*given, SHAPES), form(*given, SHAPES)
    torch.testing.assert_close(got, want, atol=1e-13, rtol=0)
    direction = torch.randn_like(want)
    wanted = torch.autograd.grad((want * direction).sum(), given)
    for a, b in zip(torch.autograd.grad((got * direction).sum(), given), wanted, strict=True):
        torch.testing.assert_close(a, b, atol=1e-11, rtol=0)


def test_parts_of_queries_change_nothing(monkeypatch):
    from tetravit.layers import deformable_attention

    given = [x.requires_grad_() for x in inputs()]
    results = []
    for part in (24, 10**9):
        monkeypatch.setattr(deformable_attention, "PART", part)
        monkeypatch.setattr(deformable_attention, "GRADIENT_PART", part)
        out = sample_by_rows(*given, SHAPES)
        results.append([out, *torch.autograd.grad(out.square().sum(), given)])
    for a, b in zip(*results, strict=True):
        torch.testing.assert_close(a, b, atol=1e-13, rtol=0)


@pytest.mark.parametrize("form", [sample_by_grid, sample_by_rows])
def test_points_far_away_count_nothing(form):
    value, points, weights = inputs(torch.float32)
    points = points.fill_(1e30).requires_grad_()
    out = form(value, points, weights, SHAPES)
    assert (out == 0).all()
    out.sum().backward()
    assert (points.grad == 0).all()


def test_an_undefined_point_makes_an_undefined_result_and_no_crash():
    value, points, weights = inputs(torch.float32)
    points[0, 0, 0, 0, 0] = math.nan
    out = sample_by_rows(value, points, weights, SHAPES)
    assert out[0, 0, :3].isnan().all()
    assert out[:, 1:].isfinite().all()


def built(**options):
    torch.manual_seed(0)
    layer = DeformableAttention(**{"dim": 16, "levels": 3, "heads": 4, "points": 2, **options})
    for parameter in layer.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return layer


def test_offsets_start_on_rays_one_per_head_and_all_points_weigh_the_same():
    layer = DeformableAttention(8, levels=2, heads=4, points=3)
    bias = layer.sampling_offsets.bias.detach().view(4, 2, 3, 2)
    rays = torch.tensor([[1.0, 0.0], [0.0, 1.0], [-1.0, 0.0], [0.0, -1.0]])
    for p in range(3):
        torch.testing.assert_close(bias[:, 0, p], rays * (p + 1), atol=1e-6, rtol=0)
    assert torch.equal(bias[:, 0], bias[:, 1])
    assert not layer.attention_weights.weight.any()
    assert not layer.attention_weights.bias.any()


def test_padding_counts_as_zero_values():
    layer, query = built(), torch.randn(2, 5, 16)
    reference, value = torch.rand(2, 5, 3, 2), torch.randn(2, TOKENS, 16)
    padding = torch.rand(2, TOKENS) < 0.3
    out = layer(query, reference, value, SHAPES, padding)
    value[padding] = 1e6
    assert torch.equal(layer(query, reference, value, SHAPES, padding), out)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_sampling_is_done_in_float32_under_autocast(dtype):
    layer, query = built(), torch.randn(2, 5, 16)
    reference, value = torch.rand(2, 5, 3, 4), torch.randn(2, TOKENS, 16)
    want = layer(query, reference, value, SHAPES)
    with torch.autocast("cpu", dtype=dtype):
        assert layer.sampling_points(query, reference, SHAPES).dtype == torch.float32
        got = layer(query, reference, value, SHAPES)
    torch.testing.assert_close(got.float(), want, atol=0.1, rtol=0)


def test_heads_that_do_not_divide_the_width():
    with pytest.raises(ValueError) as error:
        DeformableAttention(10, levels=1, heads=4, points=1)
    assert str(error.value) == "heads must divide the width 10; got 4."


GOLDEN = Golden("detr_units")


@pytest.mark.parametrize("form", ["2d", "4d"])
@pytest.mark.parametrize("sampler", [sample_by_grid, sample_by_rows])
def test_outputs_and_gradients_are_the_authors(form, sampler, monkeypatch):
    from tetravit.layers import deformable_attention

    monkeypatch.setattr(deformable_attention, "sample", sampler)
    meta = GOLDEN.meta["msda"]
    layer = DeformableAttention(32, levels=3, heads=4, points=3)
    state = {key: value("msda." + key, tuple(shape)) for key, shape in meta["state_dict"].items()}
    state["sampling_offsets.bias"] += ring(4, 3, 3)
    layer.load_state_dict(state)
    reference = 1.2 * rand("msda:ref2", (2, 7, 3, 2)) - 0.1
    if form == "4d":
        sides = 0.05 + 0.6 * rand("msda:ref4s", (2, 7, 3, 2))
        reference = torch.cat((rand("msda:ref4c", (2, 7, 3, 2)), sides), dim=-1)
    given = {"gquery": randn("msda:query", (2, 7, 32)), "gref": reference}
    given["ginput"] = randn("msda:input", (2, 64, 32))
    for x in given.values():
        x.requires_grad_()
    shapes = [tuple(shape) for shape in meta["shapes"]]
    GOLDEN.check(f"msda_{form}_nopad_out", layer(*given.values(), shapes).detach())
    out = layer(*given.values(), shapes, GOLDEN["msda_pad"])
    GOLDEN.check(f"msda_{form}_pad_out", out.detach())
    out.backward(randn("msda:gout", (2, 7, 32)))
    for name, x in given.items():
        GOLDEN.check(f"msda_{form}_{name}", x.grad)
    for name, parameter in layer.named_parameters():
        GOLDEN.check(f"msda_{form}_g_{name}", parameter.grad)


def test_a_second_derivative_is_refused():
    given = [x.requires_grad_() for x in inputs()]
    out = sample_by_rows(*given, SHAPES)
    (grad,) = torch.autograd.grad(out.square().sum(), given[:1], create_graph=True)
    with pytest.raises(RuntimeError, match="differentiate twice"):
        grad.sum().backward()
