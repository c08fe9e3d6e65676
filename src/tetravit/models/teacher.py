"""Teachers for distillation: models of this package, of torchvision and of timm."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from tetravit.models.load import load_classifier
from tetravit.registry import suggestion
from tetravit.structures import Preprocess
from tetravit.weights import convert


@dataclass(frozen=True)
class Teacher:
    """A network (B, 3, Hi, Wi) -> logits (B, num_classes), and its preprocessing."""

    module: nn.Module
    num_classes: int
    input: Preprocess


def load_teacher(source: str, weights: str = "") -> Teacher:
    """A trained teacher network by name.

    Args:
        source: `torchvision:NAME`, `timm:NAME`, or a source for `load`: a file, a run folder, NAME.TAG.
        weights: of a torchvision or timm network: a file, or NAME.TAG of the catalogue.

    Raises:
        ValueError: if the network is unknown, has no weights, or they do not fit.
    """
    library, colon, name = source.partition(":")
    if not colon or library not in BUILD:
        if weights:
            raise ValueError(f"task.teacher_weights goes with torchvision:NAME or timm:NAME; got {source!r}.")
        model = load_classifier(source)
        return Teacher(model, model.num_classes, model.input)
    if not weights:
        raise ValueError(f"A teacher needs weights: set task.teacher_weights to the file of {source}.")
    state = convert.state_of(convert.find(weights, model=name)).tensors
    num_classes = _classes(state)
    module = BUILD[library](name, num_classes)
    try:
        module.load_state_dict(state)
    except RuntimeError as error:
        reason = " ".join(str(error).split("\n\t")[1:2]).rstrip(". ") or "other names"
        raise ValueError(f"{weights} does not fit {source}: {reason}.") from None
    return Teacher(module, num_classes, Preprocess())


def _classes(state: dict[str, Tensor]) -> int:
    """Number of classes of a classifier: rows of its last matrix; 0: no matrix."""
    matrices = [t for name, t in state.items() if t.ndim == 2 and name.endswith("weight")]
    return len(matrices[-1]) if matrices else 0


def _torchvision(name: str, num_classes: int) -> nn.Module:
    from torchvision.models import get_model, list_models

    known = list_models()
    if name not in known:
        raise ValueError(f"torchvision has no model {name!r}.{suggestion(name, known)}")
    module: nn.Module = get_model(name, weights=None, num_classes=num_classes)
    return module


def _timm(name: str, num_classes: int) -> nn.Module:
    try:
        import timm
    except ImportError:
        raise ValueError(f"The teacher timm:{name} needs the extra: pip install 'tetravit[timm]'.") from None
    known: Any = timm.list_models()
    if name not in known:
        raise ValueError(f"timm has no model {name!r}.{suggestion(name, known)}")
    module: nn.Module = timm.create_model(name, pretrained=False, num_classes=num_classes)
    return module


BUILD: dict[str, Callable[[str, int], nn.Module]] = {"torchvision": _torchvision, "timm": _timm}
