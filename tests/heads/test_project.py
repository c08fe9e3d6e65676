"""DINO's projection head equals the authors', outputs and gradients."""

import pytest
import torch
from selfsup import inputs
from selfsup.answers import check, meta, names, tensors

from tetravit.heads.project import ProjectionHead

OPTIONS = {
    "norm": {},
    "free": {"last": "free"},
    "bn": {"last": "free", "norm": "batch"},
    "n1": {"layers": 1},
    "n2": {"layers": 2, "last": "free"},
}


def head(variant, **changes):
    keys = meta()[f"head_{variant}"]["keys"]
    module = ProjectionHead(20, 36, **{"hidden": 28, "bottleneck": 12, **OPTIONS[variant], **changes})
    spread = variant in ("free", "bn", "n2")
    module.load_state_dict(tensors(inputs.state(f"head_{variant}.", keys, spread_g=spread)))
    return module


@pytest.mark.parametrize("variant", OPTIONS)
def test_outputs_and_gradients_are_the_authors(variant):
    module = head(variant)
    x, gout = map(torch.from_numpy, inputs.head_inputs(5, 20, 36))
    x.requires_grad_(True)
    out = module(x)
    out.backward(gout)
    check(f"head_{variant}_out", out)
    check(f"head_{variant}_gx", x.grad)
    parameters = dict(module.named_parameters())
    assert [n for n, p in parameters.items() if p.grad is not None] == meta()[f"head_{variant}"]["trains"]
    for key in names(f"head_{variant}_g_"):
        check(key, parameters[key.removeprefix(f"head_{variant}_g_")].grad)


def test_running_statistics_and_evaluation():
    module = head("bn")
    x, _ = map(torch.from_numpy, inputs.head_inputs(5, 20, 36))
    module(x)
    check("head_bn_running_mean1", module.mlp[1].running_mean)
    check("head_bn_running_var1", module.mlp[1].running_var)
    check("head_bn_eval_out", module.eval()(x))


def test_fresh_weights():
    module = ProjectionHead(64, 100, hidden=256, bottleneck=32)
    assert module.last_layer.weight_g.unique().tolist() == [1.0]
    assert not module.last_layer.weight_g.requires_grad
    assert module.mlp[0].weight.std().item() == pytest.approx(0.02, rel=0.02)
    assert module.last_layer.weight_v.abs().max() <= 32**-0.5  # torch's own for a linear layer


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_a_row_of_zeros_stays_finite_in_half_precision(dtype):
    module = ProjectionHead(8, 6, hidden=8, bottleneck=4).to(dtype)
    assert module(torch.zeros(2, 8, dtype=dtype)).isfinite().all()
    with torch.autocast("cpu", dtype):
        assert ProjectionHead(8, 6, hidden=8, bottleneck=4)(torch.zeros(2, 8)).isfinite().all()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"prototypes": 0}, "prototypes of a projection head is 1 or more; got 0."),
        ({"layers": 0}, "layers of a projection head is 1 or more; got 0."),
        ({"norm": "layer"}, "norm of a projection head takes one of none, batch; got 'layer'."),
        ({"last": "frozen"}, "last of a projection head takes one of normed, free; got 'frozen'."),
    ],
)
def test_bad_arguments(options, message):
    with pytest.raises(ValueError) as error:
        ProjectionHead(**{"dim": 4, "prototypes": 5, **options})
    assert str(error.value) == message
