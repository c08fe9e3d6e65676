"""Knowledge distillation: a classifier trained on labels and on the predictions of a teacher.

As in XCiT (arXiv:2106.09681) and ConViT (arXiv:2103.10697), both losses apply to the same logits. A model with a
distillation token (DeiT, arXiv:2012.12877, Sec. 4) has a second head: the first is trained on labels, the second on
the teacher, and their mean is evaluated.

Shapes: B batch, K classes.
"""

import hashlib
from collections.abc import Mapping
from typing import Any, Literal, Self

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from tetravit.data.config import DataConfig
from tetravit.data.datasets.base import DatasetInfo
from tetravit.models.teacher import Teacher, load_teacher
from tetravit.structures import Batch, Preprocess
from tetravit.tasks.base import Progress
from tetravit.tasks.parts.classification import Classification, ClassificationConfig, accuracy


class DistillConfig(ClassificationConfig):
    """The `[task]` section for distillation."""

    name: Literal["distill"] = "distill"
    teacher: str = Field(
        default="",
        description="torchvision:NAME or timm:NAME (timm is an extra), with its weights in teacher_weights; or a"
        " trained model of this package: a file, a run folder, NAME.TAG.",
    )
    teacher_weights: str = Field(default="", description="A file, or NAME.TAG of the catalogue.")
    teacher_size: int | None = Field(
        default=None,
        ge=1,
        description="Training image side of the teacher in pixels; unset: that of its weights, else 224.",
    )
    kind: Literal["hard", "soft"] = Field(
        default="hard",
        description="The target: hard, the teacher's most likely class; soft, its probabilities.",
    )
    alpha: float = Field(default=0.5, ge=0, le=1, description="Share of the teacher in the loss.")
    tau: float = Field(default=1.0, gt=0, description="Temperature of the probabilities of kind soft.")


class Distill(Classification):
    """Train on labels and on a teacher's predictions for the same augmented and mixed images.

    The teacher is not in the module tree: it stays in evaluation mode, is in no checkpoint and no weights file, and
    has no optimizer. It is moved to the device of the task. A checkpoint contains the checksum of its weights, so
    that a run is not resumed with another teacher.
    """

    Config = DistillConfig
    config: DistillConfig

    def __init__(self, model: nn.Module, config: DistillConfig, data: DatasetInfo) -> None:
        super().__init__(model, config, data)
        self._hidden: list[nn.Module] = []
        self.register_buffer("teacher_sha256", torch.zeros(32, dtype=torch.uint8))

    def external_modules(self) -> list[nn.Module]:
        return self._hidden

    def prepare(self, data: DataConfig) -> None:
        """Load the teacher, and set up mixing from `data.mix`.

        Raises:
            ValueError: if there is no teacher, or it was trained for other classes or images than the run.
        """
        super().prepare(data)
        config = self.config
        if not config.teacher:
            raise ValueError("The recipe lacks task.teacher.")
        self.teach(load_teacher(config.teacher, config.teacher_weights), data.preprocess)

    def teach(self, teacher: Teacher, images: Preprocess) -> None:
        """Use `teacher`, after checking that it matches.

        Raises:
            ValueError: if it was trained for other classes or images than the run.
        """
        size = self.config.teacher_size or teacher.input.size
        if teacher.num_classes != self.num_classes:
            raise ValueError(
                f"The teacher has {teacher.num_classes} classes; the data has {self.num_classes}."
            )
        if size != images.size:
            raise ValueError(
                f"The teacher takes {size} x {size} pixels; data.image_size is {images.size}."
                f" To use it at that size, set task.teacher_size={images.size}."
            )
        if (teacher.input.mean, teacher.input.std) != (images.mean, images.std):
            raise ValueError(
                f"The teacher takes images of mean {teacher.input.mean} and deviation {teacher.input.std};"
                f" the data gives {images.mean} and {images.std}."
            )
        module = teacher.module.eval().requires_grad_(False).to(self.device)
        self._hidden = [module]
        self.teacher_sha256 = torch.tensor(list(_digest(module)), dtype=torch.uint8, device=self.device)

    @property
    def teacher(self) -> nn.Module:
        """The teacher."""
        if not self._hidden:
            raise RuntimeError("The task has no teacher yet: call prepare first.")
        return self._hidden[0]

    def step(self, batch: Batch, progress: Progress) -> dict[str, Tensor]:
        images, targets = self.mixed(batch)
        with torch.no_grad():
            teacher_logits = self.teacher(images).float()  # (B, K)
        logits, taught = self.learners(images)
        teaching = self.teaching(taught, teacher_logits)
        loss = (1 - self.config.alpha) * self.loss(logits, targets) + self.config.alpha * teaching
        return {"loss": loss, "teaching": teaching, "accuracy": accuracy(logits, targets)}

    def learners(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """The logits (B, K) for the loss on labels, and those for the loss on the teacher."""
        if getattr(self.model, "head_dist", None) is None:
            logits = self.model(images).float()
            return logits, logits
        logits, taught = self.model(images, heads="each")
        return logits.float(), taught.float()

    def teaching(self, logits: Tensor, teacher_logits: Tensor) -> Tensor:
        """The distillation loss of logits (B, K); soft: KL divergence, averaged over images and classes, times
        tau^2."""
        if self.config.kind == "hard":
            return F.cross_entropy(logits, teacher_logits.argmax(dim=1))
        tau = self.config.tau
        ours, theirs = (logits / tau).log_softmax(dim=1), (teacher_logits / tau).log_softmax(dim=1)
        return F.kl_div(ours, theirs, reduction="sum", log_target=True) * tau**2 / logits.numel()

    def load_state_dict(self, state_dict: Mapping[str, Any], *args: Any, **kwargs: Any) -> Any:
        """As `nn.Module.load_state_dict`.

        Raises:
            ValueError: if the state is from a run with another teacher.
        """
        kept = state_dict.get("teacher_sha256")
        if self._hidden and kept is not None and not torch.equal(kept.cpu(), self.teacher_sha256.cpu()):
            raise ValueError("A resumed run keeps its teacher; the weights of this one differ.")
        return super().load_state_dict(state_dict, *args, **kwargs)

    def _apply(self, fn: Any, recurse: bool = True) -> Self:
        """Used by `to`, `cuda` and similar methods: moves the teacher too."""
        for module in self._hidden:
            module._apply(fn, recurse)
        super()._apply(fn, recurse)
        return self


def _digest(module: nn.Module) -> bytes:
    """A checksum over the names and values of all weights."""
    digest = hashlib.sha256()
    for name, value in sorted(module.state_dict().items()):
        digest.update(name.encode())
        digest.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return digest.digest()


TASKS = {"distill": Distill}
