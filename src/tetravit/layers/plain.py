"""The one rule for every shortcut: when a module may be computed from its parameters instead of being called.

A fused or shortened form uses parameters of a module that it does not call. That is right only while calling the
module would do what its class does, and nothing else: hooks, adapters, quantization, pruning, sharding and
parametrizations all act in the call.
"""

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.nn.modules.module import _has_any_global_hook

LEAVES = (nn.Linear, nn.LayerNorm, nn.Conv2d)


def is_plain_module(*modules: nn.Module) -> bool:
    """Whether each module is exactly PyTorch's or this package's own, without hooks, with plain parameters.

    False for subclasses and wrappers, replaced `forward`s, modules compiled on their own, parametrized, pruned,
    sharded or quantized parameters, hooks of any kind, global ones included.
    """
    return not _has_any_global_hook() and all(map(_is_plain, modules))


def is_plain_tree(*modules: nn.Module) -> bool:
    """Whether the modules and everything inside them are plain."""
    return is_plain_module(*(inner for module in modules for inner in module.modules()))


def can_use_fused(x: Tensor, *modules: nn.Module) -> bool:
    """Whether `x` may take a fused form of the modules: plain modules, eager float32 on a CPU.

    False under autocast, in captured graphs, in transforms of torch.func and in forward-mode differentiation.
    """
    if type(x) not in (Tensor, nn.Parameter) or x.device.type != "cpu" or x.dtype != torch.float32:
        return False
    if torch.is_autocast_enabled("cpu") or is_capturing() or is_transformed() or _has_any_global_hook():
        return False
    return all(_is_plain(module, torch.float32) for module in modules)


def is_capturing() -> bool:
    """Whether a graph is being captured (compile, export, trace)."""
    return torch.compiler.is_compiling() or torch.jit.is_tracing()  # type: ignore[attr-defined]


def is_transformed() -> bool:
    """Whether a transform of torch.func or forward-mode differentiation is active."""
    return torch._C._are_functorch_transforms_active() or forward_ad._current_level >= 0


def _is_plain(module: nn.Module, dtype: torch.dtype | None = None) -> bool:
    """As `is_plain_module`, but for global hooks; with a `dtype`, all its parameters are of it too."""
    inside = module.__dict__
    if inside["_forward_hooks"] or inside["_forward_pre_hooks"]:
        return False
    if inside["_backward_hooks"] or inside["_backward_pre_hooks"]:
        return False
    if "forward" in inside or module._compiled_call_impl is not None:
        return False
    parameters, kind = inside["_parameters"], type(module)
    if kind in LEAVES:
        if parameters.get("weight") is None or "bias" not in parameters:
            return False
    elif kind not in (nn.GELU, nn.Identity) and not kind.__module__.startswith("tetravit."):
        return False
    for p in parameters.values():
        if p is None:
            continue
        if type(p) is not nn.Parameter and not _stands_for_parameter(p):
            return False
        if dtype is not None and p.dtype != dtype:
            return False
    return True


def _stands_for_parameter(tensor: Tensor) -> bool:
    """Whether it is what torch.export puts in the place of a plain parameter: a tensor without values."""
    return is_capturing() and type(tensor).__name__ == "FakeTensor"
