"""The loss and the centre of DINO equal the authors'."""

import numpy as np
import pytest
import torch
from selfsup import inputs
from selfsup.answers import check, meta

from tetravit.tasks.parts.dino_loss import assignments, dino_loss, new_center, views_loss

ARGS = meta()["loss_args"]


def temperature(epoch):
    warm = ARGS["warmup_epochs"]
    table = np.linspace(ARGS["warmup_teacher_temp"], ARGS["teacher_temp"], warm)
    return float(table[epoch]) if epoch < warm else ARGS["teacher_temp"]


@pytest.mark.parametrize("epoch", [0, 7, 9, 10, 25])
def test_three_steps(epoch):
    assert temperature(epoch) == pytest.approx(meta()["loss_temps"][str(epoch)], abs=1e-9)
    center = torch.zeros(1, ARGS["dim"])
    for step in range(3):
        logits = inputs.loss_inputs(step, dim=ARGS["dim"], views=ARGS["views"], batch=ARGS["batch"])
        student, teacher = map(torch.from_numpy, logits)
        half = 3 * ARGS["batch"]
        student.requires_grad_(True)
        loss = dino_loss(student, teacher, center, teacher_temp=temperature(epoch))
        loss.backward()
        center = new_center(center, teacher)
        assert loss.item() == pytest.approx(meta()[f"loss_ep{epoch}"][step], rel=2e-5)
        check(f"loss_ep{epoch}_center{step}", center)
        check(f"loss_ep{epoch}_gstudent{step}", student.grad[::2, ::3])
        assert half == 9


def test_two_views():
    student, teacher = map(torch.from_numpy, inputs.two_views(dim=ARGS["dim"], batch=ARGS["batch"]))
    student.requires_grad_(True)
    center = torch.zeros(1, ARGS["dim"])
    loss = dino_loss(student, teacher, center, teacher_temp=0.04)
    loss.backward()
    assert loss.item() == pytest.approx(meta()["loss_two_views"], rel=2e-5)
    check("loss2_gstudent", student.grad)


def test_other_temperature_and_momentum():
    student, teacher = map(torch.from_numpy, inputs.two_views(dim=ARGS["dim"], batch=ARGS["batch"]))
    center, losses = torch.zeros(1, ARGS["dim"]), []
    for _ in range(2):
        losses.append(dino_loss(student, teacher, center, teacher_temp=0.04, student_temp=0.2).item())
        center = new_center(center, teacher, momentum=0.5)
    assert losses == pytest.approx(meta()["loss_two_views_t2_m5"], rel=2e-5)
    check("loss2_center_m5", center)


def test_groups_of_views_add_up_to_the_whole():
    student, teacher = torch.randn(5 * 4, 12), torch.randn(2 * 4, 12)
    center = torch.randn(1, 12)
    whole = dino_loss(student, teacher, center, teacher_temp=0.05)
    targets, views = assignments(teacher, center, 0.05), student.unflatten(0, (5, 4))
    parts = [
        views_loss(views[i : i + n], targets, first=i, total=5, student_temp=0.1)
        for i, n in ((0, 1), (1, 2), (3, 2))
    ]
    torch.testing.assert_close(sum(parts), whole)


def test_misshapen_logits():
    with pytest.raises(ValueError) as error:
        dino_loss(torch.randn(7, 4), torch.randn(4, 4), torch.zeros(1, 4), teacher_temp=0.04)
    assert str(error.value) == (
        "student logits are (V B, K) and teacher logits (2 B, K), with V from 2 up; got (7, 4) and (4, 4)."
    )
