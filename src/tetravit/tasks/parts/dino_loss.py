"""The DINO loss: cross-entropy between the teacher's output for one view and the student's for another.

Rows are view-major: all images of view 0, then of view 1, and so on; views 0 and 1 are the global ones.

Shapes: B images, V views, K prototypes.
Source: facebookresearch/dino@7c446df main_dino.py.
"""

import torch
from torch import Tensor

GLOBALS = 2  # global views, seen by the teacher


def dino_loss(
    student: Tensor, teacher: Tensor, center: Tensor, *, teacher_temp: float, student_temp: float = 0.1
) -> Tensor:
    """Cross-entropy between teacher and student assignments, over all pairs of different views.

    Args:
        student: logits (V B, K) of all views.
        teacher: logits (2 B, K) of the two global views; they get no gradient.
        center: (1, K), subtracted from the teacher's logits.
        teacher_temp, student_temp: softmax temperatures.

    Raises:
        ValueError: if the rows are not those of two global and at least two views.
    """
    rows, odd = divmod(len(teacher), GLOBALS)
    if odd or not rows or len(student) % rows or len(student) < GLOBALS * rows:
        raise ValueError(
            "student logits are (V B, K) and teacher logits (2 B, K), with V from 2 up; got"
            f" {tuple(student.shape)} and {tuple(teacher.shape)}."
        )
    views = student.unflatten(0, (-1, rows))
    targets = assignments(teacher, center, teacher_temp)
    return views_loss(views, targets, first=0, total=len(views), student_temp=student_temp)


@torch.no_grad()
def assignments(teacher: Tensor, center: Tensor, temp: float) -> Tensor:
    """Teacher logits (2 B, K) -> softmax targets (2, B, K), in float32."""
    return ((teacher.float() - center) / temp).softmax(dim=-1).unflatten(0, (GLOBALS, -1))


def views_loss(views: Tensor, targets: Tensor, *, first: int, total: int, student_temp: float) -> Tensor:
    """The contribution of some student views to the loss.

    Args:
        views: logits (n, B, K) of views `first`, `first + 1`, ... of `total`.
        targets: teacher assignments (2, B, K).
    """
    pairs = GLOBALS * total - GLOBALS
    loss = views.new_zeros((), dtype=torch.float32)
    for v, logits in enumerate(views, first):
        # A global view is compared with the other global view only, a local one with both.
        target = targets[1 - v] if v < GLOBALS else targets.sum(0)
        loss = loss - (target * (logits.float() / student_temp).log_softmax(dim=-1)).sum(-1).mean()
    return loss / pairs


@torch.no_grad()
def new_center(center: Tensor, teacher_logits: Tensor, momentum: float = 0.9) -> Tensor:
    """The centre (1, K) moved towards the mean of the teacher's logits (R, K), in float32.

    A mean over ranks or micro-batches is the mean of their means where their numbers of rows are equal.
    """
    return center * momentum + teacher_logits.float().mean(0, keepdim=True) * (1 - momentum)
