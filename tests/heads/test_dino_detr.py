"""Equal to the authors' numbers (tests/golden/detr), and what only this head has."""

import functools

import pytest
import torch
from detr.inputs import SIZES, Golden, authors_state, maps, targets

from tetravit.boxes.coding import corners
from tetravit.boxes.denoising import Draws
from tetravit.boxes.hungarian import match
from tetravit.heads.dino_detr import DinoDETR
from tetravit.models import create_detector
from tetravit.structures import Target
from tetravit.weights.layouts import dense_map

GOLDEN = Golden("detr")
CHANNELS, STRIDES = (64, 128, 256, 512), (4, 8, 16, 32)


@functools.cache
def built():
    """The head with the weights of the goldens."""
    head = DinoDETR(CHANNELS, STRIDES, num_classes=91, num_queries=100).eval()
    theirs = authors_state()
    state = {key: theirs[key] for key in head.state_dict()}
    head.load_state_dict(state)
    return head


def in_pixels():
    labels, boxes = targets()
    return [
        Target(corners(box) * size.flip(0).repeat(2), label)
        for box, label, size in zip(boxes, labels, SIZES, strict=True)
    ]


@functools.cache
def evaluated():
    """Outputs, and what passed between the parts."""
    head, seen = built().eval(), {}
    parts = {f"proj{i}": layer for i, layer in enumerate(head.input_proj)}
    parts |= {f"enc{i}": layer for i, layer in enumerate(head.transformer.encoder.layers)}
    parts |= {f"dec{i}": layer for i, layer in enumerate(head.transformer.decoder.layers)}
    handles = [
        layer.register_forward_hook(lambda m, given, out, name=name: seen.__setitem__(name, out))
        for name, layer in parts.items()
    ]
    with torch.no_grad():
        outputs = head(maps(), SIZES)
    for handle in handles:
        handle.remove()
    return outputs, seen


def test_every_layer_is_the_authors():
    outputs, seen = evaluated()
    for i in range(4):
        x = seen[f"proj{i}"]
        GOLDEN.check(f"proj{i}", x[:, ::16, :: max(1, x.shape[2] // 4), :: max(1, x.shape[3] // 5)])
    for i in range(6):
        GOLDEN.check(f"enc{i}", seen[f"enc{i}"][:, ::67, ::32])
        GOLDEN.check(f"dec{i}", seen[f"dec{i}"][:, ::10, ::16])
        GOLDEN.check(f"logits{i}", outputs.logits[i][:, :, :: 3 if i == 5 else 13])
        GOLDEN.check(f"logits_lse{i}", outputs.logits[i].logsumexp(dim=2))
        GOLDEN.check(f"boxes{i}", outputs.boxes[i])
    GOLDEN.check("memory", seen["enc5"][:, ::23, ::16])
    GOLDEN.check("memory_absmean", seen["enc5"].abs().mean(dim=2)[:, ::5])


def test_the_selected_tokens_are_the_authors_in_their_order():
    proposals = evaluated()[0].proposals
    assert torch.equal(proposals.index, GOLDEN["topk_index"])
    GOLDEN.check("interm_logits", proposals.logits[:, :, ::13])
    GOLDEN.check("interm_boxes", proposals.boxes)


def test_matches_are_the_authors():
    outputs = evaluated()[0]
    labels, boxes = targets()
    layers = {str(i): (outputs.logits[i], outputs.boxes[i]) for i in range(6)}
    layers["interm"] = outputs.proposals[1:]
    for name, (logits, placed) in layers.items():
        pairs = match(logits, placed, labels, boxes)
        assert [[q.tolist(), o.tolist()] for q, o in pairs] == GOLDEN.meta["indices_eval"][name], name


def test_detections_are_the_authors():
    picked = built().decode(evaluated()[0], torch.tensor([[480, 600], [427, 580]]), max_detections=50)
    assert picked.valid.all()
    GOLDEN.check("det_scores", picked.scores)
    order = picked.scores.argsort(dim=1, descending=True, stable=True)
    assert torch.equal(order, torch.arange(50).expand(2, -1))
    close = picked.labels == GOLDEN["det_labels"]
    assert close.all()
    GOLDEN.check("det_boxes", picked.boxes)


def check_losses(losses, want):
    weights = GOLDEN.meta["weight_dict"]
    assert set(losses) == set(weights)
    for name, weight in weights.items():
        assert losses[name].item() == pytest.approx(weight * want[name], rel=1e-5, abs=1e-7), name


def test_losses_of_an_evaluation_are_the_authors():
    losses = built().loss(evaluated()[0], in_pixels(), SIZES)
    check_losses(losses, GOLDEN.meta["losses_eval"])
    total = sum(loss.item() for loss in losses.values())
    assert total == pytest.approx(GOLDEN.meta["loss_eval_total_weighted"], rel=1e-5)


@functools.cache
def trained():
    """Outputs, losses and gradients of a step with the authors' random numbers."""
    head = built().train()
    head.zero_grad()
    draws = Draws(*(GOLDEN[f"cdn_s10_draw{i}"] for i in range(4)))
    outputs = head(maps(), SIZES, in_pixels(), draws)
    losses = head.loss(outputs, in_pixels(), SIZES)
    sum(losses.values()).backward()
    gradients = {name: p.grad for name, p in head.named_parameters()}
    head.zero_grad()
    return outputs, losses, gradients


@pytest.mark.slow
def test_denoising_is_the_authors():
    outputs = trained()[0]
    assert outputs.denoising.groups == GOLDEN.meta["dn_meta_s10"]["num_dn_group"]
    with torch.no_grad():
        GOLDEN.check("cdn_s10_dn_logits5", outputs.denoising.logits[5][:, ::3, ::13])
        GOLDEN.check("cdn_s10_dn_logits0", outputs.denoising.logits[0][:, ::3, ::13])
        GOLDEN.check("cdn_s10_dn_boxes5", outputs.denoising.boxes[5])
        GOLDEN.check("cdn_s10_boxes5", outputs.boxes[5])
        GOLDEN.check("cdn_s10_logits5", outputs.logits[5][:, :, ::13])


@pytest.mark.slow
def test_losses_and_gradients_of_training_are_the_authors():
    import json

    from detr.inputs import HERE

    _, losses, gradients = trained()
    check_losses(losses, GOLDEN.meta["losses_train_s10"])
    norms = json.loads((HERE / "detr_params.json").read_text())["grad_s10 [norm, sum, absmax]"]
    for name, (norm, _, _) in norms.items():
        assert gradients[name].norm().item() == pytest.approx(norm, rel=1e-3, abs=1e-7), name
    for key in GOLDEN.arrays:
        if key.startswith("grad:"):
            gradient = gradients[key.removeprefix("grad:")]
            table = gradient.reshape(len(gradient), -1)
            GOLDEN.check(key, table[:: max(1, len(table) // 16), :: max(1, table.shape[1] // 16)])


@pytest.mark.slow
def test_a_file_of_the_authors_loads_and_is_written_again(tmp_path, capsys):
    path = tmp_path / "checkpoint0011_4scale.pth"
    state = authors_state()
    torch.save({"model": state, "epoch": 11}, path)
    detector = create_detector("gcvit_tiny", head="dino_detr", weights=path)
    assert detector.num_classes == 91
    assert detector.head.num_queries == 100
    assert f"{path} holds no backbone: that of the detector stays as it was.\n" in capsys.readouterr().err
    head = built().state_dict()
    assert all(torch.equal(tensor, head[key]) for key, tensor in detector.head.state_dict().items())
    theirs = dense_map("gcvit", "dino_detr").to_theirs(detector.state_dict())
    assert all(torch.equal(theirs[key], tensor) for key, tensor in state.items())
    assert {key for key in theirs if not key.startswith("backbone.0.")} == set(state)
    torch.save({"model": theirs}, path)
    again = create_detector("gcvit_tiny", head="dino_detr", weights=path)
    want = detector.state_dict()
    skipped = tuple(f"backbone.{part}" for part in ("norm.",))
    assert all(torch.equal(t, want[k]) for k, t in again.state_dict().items() if not k.startswith(skipped))
