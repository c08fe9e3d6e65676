"""Outputs of named modules of a model, for any family and image size.

torchvision's `create_feature_extractor` traces with torch.fx, which fixes branches on image sizes. Here hooks record
the outputs on a copy of the modules that shares the parameters; the given model is unchanged.
"""

import copy
from collections.abc import Mapping, Sequence
from itertools import chain
from typing import Any

from torch import nn

from tetravit.registry import suggestion

CONTAINERS = (nn.ModuleList, nn.ModuleDict)


class FeatureExtractor(nn.Module):
    """Inputs of the model -> {name: output of the module}, in the given order.

    A module that is called several times gives its last output. Parameters are shared with the source model.
    """

    def __init__(self, model: nn.Module, nodes: Mapping[str, str]) -> None:
        super().__init__()
        shared = {id(t): t for t in chain(model.parameters(), model.buffers())}
        self.model = copy.deepcopy(model, shared)
        self.nodes = dict(nodes)
        self._outputs: dict[str, Any] = {}
        for node, name in self.nodes.items():
            self.model.get_submodule(node).register_forward_hook(_Keep(self._outputs, name))

    def forward(self, *inputs: Any) -> dict[str, Any]:
        self._outputs.clear()
        self.model(*inputs)
        for node, name in self.nodes.items():
            if name not in self._outputs:
                raise ValueError(f"{type(self.model).__name__} does not call {node!r} in its forward.")
        outputs = {name: self._outputs[name] for name in self.nodes.values()}
        self._outputs.clear()
        return outputs


class _Keep:
    """A hook that stores an output; copies and pickles of an extractor have their own."""

    def __init__(self, outputs: dict[str, Any], name: str) -> None:
        self.outputs, self.name = outputs, name

    def __call__(self, module: nn.Module, inputs: Any, output: Any) -> None:
        self.outputs[self.name] = output


def create_feature_extractor(model: nn.Module, nodes: Sequence[str] | Mapping[str, str]) -> FeatureExtractor:
    """A module with the forward of `model` that returns outputs of named modules.

    Args:
        model: any model or backbone of this package; it is unchanged and shares its parameters.
        nodes: names of modules as in `model.named_modules()`, such as "backbone.blocks.5.attn"; or a dict from these
            to output names.

    Returns:
        A module from images to {name: output}. Outputs of attention and MLP modules are those before the residual
        addition.

    Raises:
        ValueError: for a name that is not a module, or a module that is never called.
    """
    names = nodes if isinstance(nodes, Mapping) else {node: node for node in nodes}
    modules = dict(model.named_modules())
    for node in names:
        if node not in modules:
            raise ValueError(f"{type(model).__name__} has no module {node!r}.{suggestion(node, modules)}")
        if isinstance(modules[node], CONTAINERS):
            inside = f"{node}.{next(iter(modules[node]._modules))}"
            raise ValueError(
                f"{node!r} is a list of modules and is not called; name one, such as {inside!r}."
            )
    return FeatureExtractor(model, names)
