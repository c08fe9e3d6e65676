"""Libraries that change modules work on every family: peft, torchao and FSDP2; the first two where installed."""

import copy
import warnings

import pytest
import torch
import torch.distributed as dist
from torch import nn

from tetravit.models import create_model

FEW = {"depths": (2, 2, 2, 2), "num_heads": (2, 2, 2, 2)}
MODELS = {
    "convit_tiny": {"depth": 3, "num_gpsa": 2, "dim": 64},
    "deit_tiny": {"depth": 3, "dim": 96},
    "gcvit_xxtiny": {"dim": 32, "window_size": (3, 3, 3, 3), **FEW},
    "twins_svt_small": {"dims": (32, 32, 64, 64), "window_size": 3, **FEW},
    "xcit_nano_12_p16": {"depth": 3, "dim": 64},
}


@pytest.fixture(scope="module", params=MODELS)
def small(request):
    torch.manual_seed(0)
    model = create_model(request.param, num_classes=5, **MODELS[request.param]).eval()
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.05 * torch.randn_like(p))
    return model


@pytest.fixture(scope="module")
def images():
    return torch.randn(2, 3, 64, 32)


def linears(model):
    return [n for n, m in model.named_modules() if isinstance(m, nn.Linear)]


@pytest.mark.slow
@pytest.mark.parametrize("targets", ["all-linear", "names", "convolutions"])
def test_peft_adapters_learn_and_merge(small, images, targets):
    peft = pytest.importorskip("peft")
    names = {
        "all-linear": "all-linear",
        "names": [n for n in linears(small) if n.startswith("backbone.")],
        "convolutions": [n for n, m in small.named_modules() if isinstance(m, nn.Conv2d) and m.groups == 1],
    }[targets]
    config = peft.LoraConfig(r=2, target_modules=names, init_lora_weights=False)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = peft.inject_adapter_in_model(config, copy.deepcopy(small))
    result = model(images)
    result.square().sum().backward()
    adapters = {n: p for n, p in model.named_parameters() if "lora_" in n}
    assert adapters
    assert [n for n, p in adapters.items() if p.grad is None or not p.grad.any()] == []
    assert not torch.allclose(result, small(images), atol=1e-3)
    for module in model.modules():
        if isinstance(module, peft.tuners.lora.LoraLayer):
            module.merge()
    with torch.no_grad():
        torch.testing.assert_close(model(images), result.detach(), atol=1e-4, rtol=1e-3)


@pytest.mark.parametrize("kind", ["Int8WeightOnlyConfig", "Int8DynamicActivationInt8WeightConfig"])
def test_torchao_quantizes(small, images, kind):
    quantization = pytest.importorskip("torchao.quantization")
    model = copy.deepcopy(small)
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        quantization.quantize_(model.backbone, getattr(quantization, kind)())
        changed = [m for m in model.backbone.modules() if isinstance(m, nn.Linear)]
        assert all(type(m.weight) is not nn.Parameter for m in changed)
        found, expected = model(images), small(images)
    assert torch.nn.functional.cosine_similarity(found, expected).min() > 0.95
    assert not torch.equal(found, expected)


@pytest.mark.slow
@pytest.mark.skipif(not dist.is_available(), reason="torch without distributed")
def test_sharded_blocks_give_the_same_gradients(small, images, tmp_path):
    """FSDP2 block by block, in a group of one process."""
    from torch.distributed.fsdp import fully_shard

    dist.init_process_group("gloo", init_method=f"file://{tmp_path / 'group'}", rank=0, world_size=1)
    try:
        mesh = dist.device_mesh.init_device_mesh("cpu", (1,))
        plain, sharded = copy.deepcopy(small), copy.deepcopy(small)
        blocks = [m for m in sharded.modules() if type(m).__name__ in ("Block", "LocalBlock", "ClassBlock")]
        for block in blocks:
            fully_shard(block.mlp, mesh=mesh)
            fully_shard(block, mesh=mesh)
        fully_shard(sharded, mesh=mesh)
        gradients = []
        for model in (plain, sharded):
            result = model(images)
            result.square().sum().backward()
            gradients.append(
                {n: getattr(p.grad, "full_tensor", lambda p=p: p.grad)() for n, p in model.named_parameters()}
            )
        torch.testing.assert_close(sharded(images), plain(images), atol=1e-5, rtol=1e-4)
        for name, gradient in gradients[0].items():
            torch.testing.assert_close(gradients[1][name], gradient, atol=1e-4, rtol=1e-3)
    finally:
        dist.destroy_process_group()
