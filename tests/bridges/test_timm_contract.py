"""What timm's own tests ask of every model (timm 1.0.31, tests/test_models.py), and its training script's steps."""

import copy
from argparse import Namespace
from collections import OrderedDict

import pytest
import torch
from PIL import Image

timm = pytest.importorskip("timm")

from tests.bridges.test_timm import SIZE, SMALL, create, images  # noqa: E402

from tetravit.bridges.timm import UnknownArgument  # noqa: E402


@pytest.mark.parametrize("name", SMALL)
def test_unknown_arguments_are_type_errors(name):
    with pytest.raises(TypeError, match=f"^{name} has no option 'not_a_model_arg'"):
        create(name, not_a_model_arg=1)
    assert issubclass(UnknownArgument, ValueError)


@pytest.mark.parametrize("name", SMALL)
def test_a_factory_makes_every_tensor_on_its_device_in_its_type(name):
    model = create(name, device="meta", dtype=torch.float64).eval()
    tensors = [*model.parameters(), *model.buffers()]
    assert {t.device.type for t in tensors} == {"meta"}
    assert {p.dtype for p in model.parameters()} == {torch.float64}
    model.reset_classifier(2)
    head = model.get_classifier()
    assert all(p.device.type == "meta" and p.dtype == torch.float64 for p in head.parameters())
    assert not any(module.training for module in model.modules())


@pytest.mark.parametrize("name", SMALL)
def test_a_change_of_type_after_a_forward_pass(name):
    model = create(name, num_classes=3).eval()
    with torch.no_grad():
        model(images())
        assert model.to(torch.bfloat16)(images().bfloat16()).dtype == torch.bfloat16
        assert model.to(torch.float32)(images()).dtype == torch.float32


@pytest.mark.parametrize("name", SMALL)
def test_frozen_models_stay_frozen_without_their_head(name):
    model = create(name).requires_grad_(False)
    model.reset_classifier(0)
    model.reset_classifier(0, "")
    assert [n for n, p in model.named_parameters() if p.requires_grad] == []


SLOW = [pytest.param(n, marks=[pytest.mark.slow] * (n == "gcvit_xxtiny")) for n in SMALL]  # the most blocks


@pytest.mark.slow
@pytest.mark.parametrize("name", SLOW)
def test_pruned_models_keep_their_levels_and_train_every_parameter(name):
    model = create(name, num_classes=3).eval()
    with torch.no_grad():
        expected, levels = model(images()), model.forward_intermediates(images(), intermediates_only=True)
    whole = copy.deepcopy(model)
    whole.prune_intermediate_layers([3], prune_head=False)
    with torch.no_grad():
        torch.testing.assert_close(whole(images()), expected)
    for i, level in enumerate(levels):
        pruned = copy.deepcopy(model)
        taken = pruned.prune_intermediate_layers([i], prune_norm=True)
        with torch.no_grad():
            (found,) = pruned.forward_intermediates(images(), indices=taken, intermediates_only=True)
            torch.testing.assert_close(found, level)
            torch.testing.assert_close(pruned.forward_features(images()), level)
        pruned.train()
        (found,) = pruned.forward_intermediates(images(), indices=taken, intermediates_only=True)
        (found.sum() + pruned.forward_features(images()).sum()).backward()
        assert [n for n, p in pruned.named_parameters() if p.requires_grad and p.grad is None] == []
    pruned.reset_classifier(7, "avg")
    assert pruned.num_features == pruned.feature_info[3]["num_chs"]
    assert pruned(images()).shape == (2, 7)
    assert pruned.forward_head(pruned.forward_features(images()), pre_logits=True).shape == (
        2,
        pruned.num_features,
    )


@pytest.mark.slow
@pytest.mark.parametrize("name", SMALL)
def test_a_backbone_of_one_level_has_a_gradient_for_every_parameter(name):
    model = create(name, features_only=True, out_indices=(1,)).train()
    model.model.set_grad_checkpointing(True)
    (found,) = model(images())
    found.square().mean().backward()
    assert [n for n, p in model.named_parameters() if p.requires_grad and p.grad is None] == []


@pytest.mark.slow
@pytest.mark.parametrize("name", ["convit_tiny", "gcvit_xxtiny"])
def test_the_steps_of_timms_training_script(tmp_path, name):
    """Data, mixup, layer decay, schedule, averaged weights, checkpoints and resume, as train.py has them."""
    from timm.data import FastCollateMixup, create_dataset, create_loader, resolve_data_config
    from timm.loss import SoftTargetCrossEntropy
    from timm.models import resume_checkpoint
    from timm.optim import create_optimizer_v2
    from timm.scheduler import create_scheduler_v2
    from timm.utils import AverageMeter, CheckpointSaver, ModelEmaV3, accuracy

    for split in ("train", "validation"):
        for label, colour in (("a", "red"), ("b", "blue")):
            folder = tmp_path / "data" / split / label
            folder.mkdir(parents=True)
            for i in range(4):
                Image.new("RGB", (80, 70), colour).save(folder / f"{i}.png")
    model = create(name, num_classes=2, drop_path_rate=0.1, drop_rate=0.1)
    model.set_grad_checkpointing()
    data = resolve_data_config({"img_size": None, "input_size": (3, *SIZE)}, model=model)
    assert data["input_size"] == (3, *SIZE)
    mix = FastCollateMixup(mixup_alpha=0.8, num_classes=2, label_smoothing=0.1)
    train = create_loader(
        create_dataset("", root=str(tmp_path / "data"), split="train", is_training=True),
        input_size=data["input_size"], batch_size=4, is_training=True, collate_fn=mix, mean=data["mean"],
        std=data["std"], num_workers=0, device=torch.device("cpu"), persistent_workers=False,
    )  # fmt: skip
    check = create_loader(
        create_dataset("", root=str(tmp_path / "data"), split="validation"),
        input_size=data["input_size"], batch_size=4, mean=data["mean"], std=data["std"], num_workers=0,
        device=torch.device("cpu"), persistent_workers=False,
    )  # fmt: skip
    optimizer = create_optimizer_v2(model, opt="adamw", lr=1e-3, weight_decay=0.05, layer_decay=0.75)
    average = ModelEmaV3(model, decay=0.9)
    schedule, _ = create_scheduler_v2(optimizer, sched="cosine", num_epochs=2, warmup_epochs=1)
    arguments = Namespace(model=name)
    saver = CheckpointSaver(
        model=model, optimizer=optimizer, args=arguments, model_ema=average, checkpoint_dir=str(tmp_path),
        recovery_dir=str(tmp_path), decreasing=False, max_history=2,
    )  # fmt: skip
    for epoch in range(2):
        model.train()
        for pixels, targets in train:
            loss = SoftTargetCrossEntropy()(model(pixels), targets)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            average.update(model)
        model.eval()
        top1 = AverageMeter()
        with torch.no_grad():
            for pixels, labels in check:
                (share,) = accuracy(model(pixels), labels, topk=(1,))
                top1.update(share.item(), len(labels))
        schedule.step(epoch + 1, top1.avg)
        saver.save_checkpoint(epoch, metric=top1.avg)
    again = create(name, num_classes=2)
    other = create_optimizer_v2(again, opt="adamw", lr=1e-3, weight_decay=0.05, layer_decay=0.75)
    assert resume_checkpoint(again, str(tmp_path / "last.pth.tar"), other) == 2
    state = model.state_dict()
    assert isinstance(state, OrderedDict)
    assert all(torch.equal(value, state[key]) for key, value in again.state_dict().items())
