"""Tools around training and deployment, each as a user would call it: one small model or run per tool.

peft, torchao's quantize_ and FSDP2 are in tests/contract/test_clients.py, AOTInductor is in tests/exports.
"""

import warnings
from importlib.metadata import version

import pytest
import torch

import tetravit

SIZE = 64
FEW = {"depths": (1, 1, 1, 1), "num_heads": (2, 2, 2, 2)}
MODELS = {
    "convit_tiny": {"depth": 2, "num_gpsa": 1, "dim": 64, "image_size": SIZE},
    "deit_tiny": {"depth": 2, "dim": 96, "image_size": SIZE},
    "gcvit_xxtiny": {"dim": 32, "window_size": (2, 2, 2, 2), **FEW, "image_size": SIZE},
    "twins_svt_small": {"dims": (32, 32, 64, 64), "window_size": 2, **FEW},
    "xcit_nano_12_p16": {"depth": 2, "dim": 64},
}
RUN = {
    "steps": 3,
    "data": {"batch_size": 16, "workers": 0, "options": {"fraction": 0.06}},
    "model": {"options": {"depth": 1, "dim": 32, "num_heads": 2}},
    "run": {"device": "cpu"},
}


@pytest.fixture(params=MODELS)
def model(request):
    torch.manual_seed(0)
    return tetravit.create_model(request.param, num_classes=5, **MODELS[request.param]).eval()


@pytest.fixture
def images():
    return torch.randn(2, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(0))


def alike(found, expected):
    return torch.nn.functional.cosine_similarity(found, expected).min().item()


@pytest.mark.nightly
def test_pt2e_quantizes(model, images):
    pytest.importorskip("torchao")
    from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e
    from torchao.quantization.pt2e.quantizer.x86_inductor_quantizer import (
        X86InductorQuantizer,
        get_default_x86_inductor_quantization_config,
    )

    quantizer = X86InductorQuantizer().set_global(get_default_x86_inductor_quantization_config())
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        prepared = prepare_pt2e(torch.export.export(model, (images,)).module(), quantizer)
        prepared(images)
        converted = convert_pt2e(prepared)
        assert any("quantize_per" in str(node.target) for node in converted.graph.nodes)
        assert alike(converted(images), model(images)) > 0.95


@pytest.mark.nightly
def test_executorch_runs_on_xnnpack(model, images, tmp_path):
    """Not ConViT: lerp of two layouts becomes prims.copy_strided, which ExecuTorch 1.5 has no kernel for."""
    pytest.importorskip("executorch.exir")
    from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
    from executorch.exir import to_edge_transform_and_lower
    from executorch.runtime import Runtime

    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        program = torch.export.export(model, (images,))
        edge = to_edge_transform_and_lower(program, partitioner=[XnnpackPartitioner()])
        if model.name.startswith("convit") and version("executorch") < "1.6":
            with pytest.raises(RuntimeError, match=r"Missing out variants: {'prims::copy_strided'}"):
                edge.to_executorch()
            return
        lowered = edge.to_executorch()
        (tmp_path / "model.pte").write_bytes(lowered.buffer)
        method = Runtime.get().load_program(tmp_path / "model.pte").load_method("forward")
        (found,) = method.execute([images])
        torch.testing.assert_close(found, model(images), atol=1e-4, rtol=1e-3)


@pytest.mark.slow
def test_optuna_searches_the_learning_rate(tmp_path):
    optuna = pytest.importorskip("optuna")
    optuna.logging.set_verbosity(optuna.logging.WARNING)

    def objective(trial):
        lr = trial.suggest_float("lr", 1e-4, 1e-2, log=True)
        summary = tetravit.train("digits", run_dir=tmp_path / f"{trial.number}", optim={"lr": lr}, **RUN)
        return summary.best

    study = optuna.create_study(direction="maximize", sampler=optuna.samplers.RandomSampler(seed=0))
    study.optimize(objective, n_trials=2)
    assert 0 <= study.best_value <= 1
    assert len({trial.params["lr"] for trial in study.trials}) == 2


@pytest.mark.nightly
def test_ray_tune_searches_the_learning_rate(tmp_path):
    ray = pytest.importorskip("ray")
    tune = pytest.importorskip("ray.tune")

    def objective(config):
        summary = tetravit.train("digits", run_dir="run", optim={"lr": config["lr"]}, **RUN)
        return {"top1": summary.best}

    ray.init(num_cpus=1, include_dashboard=False, logging_level="ERROR")
    try:
        tuner = tune.Tuner(
            objective,
            param_space={"lr": tune.grid_search([1e-3, 4e-3])},
            run_config=tune.RunConfig(storage_path=str(tmp_path), verbose=0),
        )
        results = tuner.fit()
    finally:
        ray.shutdown()
    assert not results.errors
    best = results.get_best_result("top1", "max")
    assert best.config["lr"] in (1e-3, 4e-3)
    assert 0 <= best.metrics["top1"] <= 1
