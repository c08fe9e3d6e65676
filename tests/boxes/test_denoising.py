import pytest
import torch
from detr.inputs import Golden, rand, targets, unpack, value
from torch import nn

from tetravit.boxes.denoising import Draws, denoising_queries, num_groups, positives

GOLDEN = Golden("detr_units")
WEIGHT = value("cdn.label_enc.weight", (92, 16)) * 16


def draws(case):
    names = ("draw0", "draw1", "draw2", "draw3")
    arrays = (
        [GOLDEN[f"cdn_{case}_{name}"] for name in names] if f"cdn_{case}_draw0" in GOLDEN.arrays else None
    )
    return Draws(*arrays) if arrays else Draws(*drawn(case))


def drawn(case):
    """The draws of a case that the file does not hold, by their recipe."""
    from dense import weights

    (n,), (flips,) = (GOLDEN.meta[f"cdn_{case}"]["draws"][i][1] for i in (0, 1))
    sign = torch.from_numpy(weights.rng(f"cdn:{case}:randint1").integers(0, 2, (n, 4)))
    label = torch.from_numpy(weights.rng(f"cdn:{case}:randint0").integers(0, 91, flips))
    return rand(f"cdn:{case}:rand0", (n,)), label, sign, rand(f"cdn:{case}:rand1", (n, 4))


@pytest.mark.parametrize("case", "abcde")
def test_queries_are_the_authors(case):
    meta = GOLDEN.meta[f"cdn_{case}"]
    labels, boxes = targets("dino_detr:targets" if case == "a" else f"cdn:{case}", tuple(meta["counts"]))
    queries = denoising_queries(
        labels,
        boxes,
        nn.Embedding.from_pretrained(WEIGHT),
        draws(case),
        num_queries=meta["num_queries"],
        num_denoising=meta["dn_number"],
        label_noise=meta["label_noise_ratio"],
        box_noise=meta["box_noise_scale"],
    )
    assert queries.groups == meta["dn_meta"]["num_dn_group"]
    assert queries.content.shape == (2, meta["dn_meta"]["pad_size"], 16)
    GOLDEN.check(f"cdn_{case}_label", queries.content[:, :, ::4])
    GOLDEN.check(f"cdn_{case}_bbox", queries.boxes)
    assert torch.equal(queries.mask, unpack(GOLDEN[f"cdn_{case}_mask_packed"], tuple(meta["mask_shape"])))


def test_the_mask_is_the_authors():
    labels, boxes = targets()
    queries = denoising_queries(labels, boxes, WEIGHT, num_queries=5, num_denoising=2)
    assert torch.equal(queries.mask, GOLDEN["cdn_mask_plain"])


def test_without_noise_nothing_is_drawn_and_copies_are_exact():
    labels, boxes = targets()
    state = torch.get_rng_state()
    queries = denoising_queries(labels, boxes, WEIGHT, num_queries=5, label_noise=0.0, box_noise=0.0)
    assert torch.equal(torch.get_rng_state(), state)
    for i in range(2):
        slots, objects = positives(len(labels[i]), 3, queries.groups, "cpu")
        torch.testing.assert_close(queries.boxes[i, slots].sigmoid(), boxes[i][objects], atol=1e-6, rtol=0)
        assert torch.equal(queries.content[i, slots], WEIGHT[labels[i][objects]])


def test_positives_stay_within_half_a_box_and_negatives_move_further():
    torch.manual_seed(0)
    label, box = [torch.tensor([3])], [torch.tensor([[0.5, 0.5, 0.2, 0.4]])]
    queries = denoising_queries(label, box, WEIGHT, num_queries=5, num_denoising=1000, label_noise=0.0)
    noisy = queries.boxes[0].sigmoid().view(-1, 2, 4)  # positive and negative in turn
    half = torch.tensor([0.1, 0.2])
    moved = (noisy[..., :2] - noisy[..., 2:] / 2 - 0.5 + half).abs() / half  # of the upper left corner
    straight = (noisy[:, :, 2:] > 0.01).all(
        dim=2
    )  # sides that changed places have no size that a logit could keep
    assert moved[:, 0][straight[:, 0]].max() <= 1 + 1e-3
    assert moved[:, 1][straight[:, 1]].min() >= 1 - 1e-3
    assert moved[:, 1].max() <= 2 + 1e-3


@pytest.mark.slow
def test_labels_change_to_any_class_in_a_quarter_of_the_copies():
    torch.manual_seed(0)
    label, box = [torch.full((1,), 7)], [torch.tensor([[0.5, 0.5, 0.2, 0.4]])]
    table = torch.arange(92.0)[:, None]
    queries = denoising_queries(label, box, table, num_queries=5, num_denoising=10000, box_noise=0.0)
    classes = queries.content[0, :, 0]
    assert abs((classes != 7).float().mean().item() - 0.25 * 90 / 91) < 0.02
    assert classes.max() == 90  # the last row of the table stands for no class
    assert queries.content.shape[1] == 20000


@pytest.mark.parametrize(
    ("most", "number", "groups"),
    [(3, 100, 33), (0, 100, 1), (150, 100, 1), (7, 10, 20), (1, 49, 98), (1, 0, 1)],
)
def test_number_of_groups(most, number, groups):
    assert num_groups(most, number) == groups
