"""Equal to the authors' numbers (tests/golden/detr), and what only this head has."""

import copy
import functools

import pytest
import torch
from detr.inputs import SIZES, Golden, authors_state, maps, targets

from tetravit.boxes.coding import corners
from tetravit.boxes.denoising import Draws
from tetravit.boxes.hungarian import match
from tetravit.data import coco
from tetravit.heads.dino_detr import DinoDETR, Proposals, SetPrediction
from tetravit.models import create_detector
from tetravit.structures import Target
from tetravit.weights.layouts import dense_map

GOLDEN = Golden("detr")
DTYPES = [torch.float32, pytest.param(torch.float64, marks=pytest.mark.slow)]
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
def evaluated(dtype=torch.float32):
    """Outputs, and what passed between the parts."""
    head, seen = copy.deepcopy(built()).to(dtype).eval(), {}
    parts = {f"proj{i}": layer for i, layer in enumerate(head.input_proj)}
    parts |= {f"enc{i}": layer for i, layer in enumerate(head.transformer.encoder.layers)}
    parts |= {f"dec{i}": layer for i, layer in enumerate(head.transformer.decoder.layers)}
    handles = [
        layer.register_forward_hook(lambda m, given, out, name=name: seen.__setitem__(name, out))
        for name, layer in parts.items()
    ]
    with torch.no_grad():
        outputs = head([x.to(dtype) for x in maps()], SIZES)
    for handle in handles:
        handle.remove()
    return outputs, seen


@pytest.mark.parametrize("dtype", DTYPES)
def test_every_layer_is_the_authors(dtype):
    """In float64 within the bounds of the files; in float32 rounding adds as much again."""
    outputs, seen = evaluated(dtype)
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


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_selected_tokens_are_the_authors_in_their_order(dtype):
    proposals = evaluated(dtype)[0].proposals
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


@pytest.mark.parametrize("dtype", DTYPES)
def test_detections_are_the_authors(dtype):
    picked = built().decode(evaluated(dtype)[0], torch.tensor([[480, 600], [427, 580]]), max_detections=50)
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
    assert (detector.class_names[1], detector.class_names[12], detector.class_names[90]) == (
        "person", "unused 12", "toothbrush",
    )  # fmt: skip
    assert coco.category_ids(detector.class_names) == tuple(range(91))
    assert (
        f"{path} holds no backbone: the backbone of the detector is unchanged.\n" in capsys.readouterr().err
    )
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


SMALL = {
    "num_queries": 6, "max_detections": 5, "width": 16, "num_heads": 4, "hidden": 32, "encoder_layers": 1,
    "decoder_layers": 2,
}  # fmt: skip


def small(**options):
    torch.manual_seed(0)
    return DinoDETR((8, 12, 16, 20), STRIDES, num_classes=3, **{**SMALL, **options})


def small_maps(height=64, width=96, count=2):
    torch.manual_seed(1)
    channels = zip((8, 12, 16, 20), STRIDES, strict=True)
    return [torch.randn(count, c, height // s, width // s) for c, s in channels]


def objects(count):
    corner = torch.rand(count, 2) * 30
    return Target(torch.cat((corner, corner + 5 + 20 * torch.rand(count, 2)), dim=1), torch.arange(count) % 3)


def step(head, given, sizes, labels):
    losses = head.loss(head(given, sizes, labels), labels, sizes)
    assert all(loss.isfinite() for loss in losses.values())
    total = torch.stack(list(losses.values())).sum()
    total.backward()
    assert [n for n, p in head.named_parameters() if p.grad is None or not p.grad.isfinite().all()] == []
    return total.item()


def test_more_objects_than_queries_no_object_and_boxes_without_area():
    sizes = torch.tensor([[64, 96], [60, 40]])
    flat = Target(torch.tensor([[5.0, 5.0, 5.0, 30.0], [7.0, 7.0, 7.0, 7.0]]), torch.tensor([0, 2]))
    step(small().train(), small_maps(), sizes, [objects(9), objects(0)])
    step(small().train(), small_maps(), sizes, [objects(0), objects(0)])
    step(small().train(), small_maps(), sizes, [flat, objects(2)])


def test_images_that_are_all_padding_or_much_smaller_than_others():
    sizes = torch.tensor([[64, 96], [0, 0]])
    head = small().eval()
    with torch.no_grad():
        outputs = head(small_maps(), sizes)
    assert outputs.logits.isfinite().all()
    assert outputs.boxes.isfinite().all()
    step(small().train(), small_maps(), torch.tensor([[64, 96], [1, 3]]), [objects(2), objects(0)])


def test_padding_changes_nothing_that_an_image_holds():
    """But for the norms of the projections, which see the whole canvas as the authors' do."""
    head = small().eval()
    wide = [torch.cat((x, x), dim=1) for x in small_maps(64, 64)]
    filled = [torch.nn.functional.pad(x, (0, x.shape[3]), value=7.0) for x in wide]
    head.project = lambda maps: [x[:, :16] for x in maps[1:]] + [maps[3][:, :16, :1, :1]]
    sizes = torch.tensor([[64, 64]] * 2)
    with torch.no_grad():
        alone, padded = head(wide), head(filled, sizes)
    torch.testing.assert_close(padded.boxes, alone.boxes, atol=1e-5, rtol=0)


def test_fewer_tokens_than_queries_select_the_last_one_again():
    head = small(num_queries=40).eval()
    with torch.no_grad():
        outputs = head(small_maps(32, 32))
    assert outputs.boxes.shape == (2, 2, 40, 4)
    tokens = 4 * 4 + 2 * 2 + 1 + 1
    assert (outputs.proposals.index[:, tokens:] == tokens - 1).all()
    assert outputs.proposals.index[:, :tokens].sort().values.tolist() == [list(range(tokens))] * 2


def test_five_levels_use_the_finest_map():
    head = small(num_levels=5)
    assert (head.first_map, len(head.input_proj)) == (0, 5)
    with torch.no_grad():
        outputs = head.eval()(small_maps())
    assert outputs.boxes.shape == (2, 2, 6, 4)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_levels": 3}, "num_levels of dino_detr is 4 or 5; got 3."),
        ({"num_queries": 0}, "num_queries of dino_detr is 1 or more; got 0."),
        ({"num_denoising": -1}, "num_denoising of dino_detr is 0 or more; got -1."),
        ({"decoder_layers": 0}, "decoder_layers of dino_detr is 1 or more; got 0."),
        ({"width": 18}, "width of dino_detr is a multiple of 4 and of its 4 heads; got 18."),
    ],
)
def test_options_that_cannot_be(options, message):
    with pytest.raises(ValueError) as error:
        small(**options)
    assert str(error.value) == message


def test_the_encoder_computed_again_gives_the_same_gradients():
    sizes, labels = torch.tensor([[64, 96], [60, 40]]), [objects(2), objects(1)]
    results = []
    for recompute in (False, True):
        head = small().train()
        head.set_grad_checkpointing(recompute)
        torch.manual_seed(3)
        results.append([step(head, small_maps(), sizes, labels), *(p.grad for p in head.parameters())])
    assert all(torch.equal(torch.as_tensor(a), torch.as_tensor(b)) for a, b in zip(*results, strict=True))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_keeps_losses_and_boxes_in_float32(dtype):
    sizes, labels = torch.tensor([[64, 96], [60, 40]]), [objects(2), objects(1)]
    head = small().train()
    with torch.autocast("cpu", dtype=dtype):
        outputs = head(small_maps(), sizes, labels)
        losses = head.loss(outputs, labels, sizes)
    assert {outputs.logits.dtype, outputs.boxes.dtype, *(x.dtype for x in losses.values())} == {torch.float32}
    torch.stack(list(losses.values())).sum().backward()
    assert all(p.grad.isfinite().all() for p in head.parameters())


def test_names_of_losses_do_not_depend_on_the_batch():
    sizes = torch.tensor([[64, 96], [60, 40]])
    head = small().train()
    some, none = [objects(2), objects(1)], [objects(0), objects(0)]
    names = [set(head.loss(head(small_maps(), sizes, t), t, sizes)) for t in (some, none)]
    assert names[0] == names[1]
    assert len(names[0]) == 3 * (2 * 2 + 1)


def test_three_hundred_pairs_of_query_and_class_are_kept():
    """A query counts once per class, and nothing suppresses anything."""
    torch.manual_seed(0)
    logits, boxes = torch.randn(1, 2, 100, 7), torch.rand(1, 2, 100, 4)
    none = Proposals(torch.zeros(2, 100, dtype=torch.int64), logits[0], boxes[0])
    head = DinoDETR((8, 12, 16, 20), STRIDES, num_classes=7, **{**SMALL, "max_detections": 300})
    picked = head.decode(SetPrediction(logits, boxes, none, None), torch.tensor([[64, 96]] * 2))
    assert picked.scores.shape == (2, 300)
    for i in range(2):
        order = logits[0, i].flatten().argsort(descending=True)[:300]
        assert torch.equal(picked.labels[i], order % 7)
        want = corners(boxes[0, i, order // 7]) * torch.tensor([96.0, 64.0, 96.0, 64.0])
        torch.testing.assert_close(picked.boxes[i], want)
    assert DinoDETR.max_detections == 300
