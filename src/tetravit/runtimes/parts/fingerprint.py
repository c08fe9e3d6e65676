"""A hash of what a model computes: two models with the same hash give the same outputs.

It covers the classes and settings of all modules, every parameter and buffer, and the files of this package. A model
with parts that the hash cannot cover (hooks, replaced methods, classes of other packages) has none.
"""

import dataclasses
import enum
import functools
import hashlib
import inspect
import os
import platform
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.module import _has_any_global_hook

from tetravit.layers.cache import SizeCache
from tetravit.runtimes.parts.processor import processor
from tetravit.weights.fileformat import package_version

PACKAGE = Path(__file__).parents[2]
HOOKS = (
    *("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks"),
    *(
        "_state_dict_hooks",
        "_state_dict_pre_hooks",
        "_load_state_dict_pre_hooks",
        "_load_state_dict_post_hooks",
    ),
)
ACTING = HOOKS[:4]  # hooks that run in a call
OWN = {  # attributes of every module, hashed separately or without effect on outputs
    *HOOKS,
    *("_parameters", "_buffers", "_modules", "_compiled_call_impl", "_non_persistent_buffers_set"),
    *("_forward_hooks_with_kwargs", "_forward_hooks_always_called", "_forward_pre_hooks_with_kwargs"),
    *("_is_full_backward_hook", "call_super_init", "dump_patches", "training"),
}
WITHOUT_EFFECT = {"report", "optimized"}  # attributes of models


class NoFingerprint(ValueError):
    """A model without a hash of its outputs; the text gives the reason."""


def fingerprint(model: nn.Module) -> str:
    """The hash of a model in evaluation mode, in hexadecimal.

    Raises:
        NoFingerprint: if the model has parts that the hash would not cover.
    """
    if _has_any_global_hook():
        raise NoFingerprint("hooks are set for all modules")
    digest = hashlib.sha256()
    modules = {module: name for name, module in model.named_modules()}
    for module, name in modules.items():
        digest.update(_module(module, name or "the model", modules).encode())
        for kind in ("_parameters", "_buffers"):
            for key, tensor in module.__dict__[kind].items():
                if tensor is None:
                    continue
                plain = nn.Parameter if kind == "_parameters" else Tensor
                if type(tensor) is not plain:
                    raise NoFingerprint(f"{name}.{key} is a {type(tensor).__name__}")
                digest.update(f"{name}.{key}".encode())
                _tensor(digest, tensor)
    return digest.hexdigest()


def machine() -> dict[str, Any]:
    """What programs depend on besides the model: the processor, and the versions of exporters and runtimes."""
    return {
        "tetravit": package_version(),
        "source": sources(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        **{name: version(name) for name in ("onnx", "onnxscript", "onnxruntime", "openvino")},
        "system": f"{sys.platform} {platform.machine()}",
        "processor": processor(),
    }


@functools.cache
def sources() -> str:
    """A hash of the files of this package."""
    digest = hashlib.sha256()
    for file in sorted(PACKAGE.rglob("*.py")):
        digest.update(file.relative_to(PACKAGE).as_posix().encode())
        digest.update(file.read_bytes())
    return digest.hexdigest()


def version(package: str) -> str:
    """The version of an installed package; "" if it is missing."""
    from importlib.metadata import PackageNotFoundError
    from importlib.metadata import version as installed

    try:
        return installed(package)
    except PackageNotFoundError:
        return ""


def _module(module: nn.Module, name: str, modules: Mapping[nn.Module, str]) -> str:
    inside, kind = module.__dict__, type(module)
    if any(inside[hooks] for hooks in ACTING):
        raise NoFingerprint(f"{name} has hooks")
    if module._compiled_call_impl is not None:
        raise NoFingerprint(f"{name} is compiled")
    for klass in kind.__mro__[:-1]:
        if klass is not nn.Module:
            _check_class(klass)
    names = Names(modules)
    settings = {
        key: names.of(value, f"{name}.{key}")
        for key, value in sorted(inside.items())
        if key not in OWN and key not in WITHOUT_EFFECT
    }
    return f"{name}:{kind.__module__}.{kind.__qualname__}:{settings}:{sorted(inside['_modules'])}\n"


@functools.cache
def _check_class(klass: type) -> None:
    """Raises: NoFingerprint if its methods are not those of a file of torch or of this package."""
    if klass.__module__.partition(".")[0] not in ("torch", "tetravit", "abc", "typing", "collections"):
        raise NoFingerprint(f"{klass.__qualname__} is a class of {klass.__module__}")
    if klass.__module__.startswith("tetravit."):
        for key, value in vars(klass).items():
            for function in _functions(value):
                if not _is_ours(function):
                    raise NoFingerprint(f"{klass.__qualname__}.{key} is replaced")


def _functions(value: Any) -> Iterator[Any]:
    if isinstance(value, staticmethod | classmethod):
        value = value.__func__
    if isinstance(value, property):
        yield from (f for f in (value.fget, value.fset) if f is not None)
    elif inspect.isfunction(value):
        yield inspect.unwrap(value)


def _is_ours(function: Any) -> bool:
    """Whether the code of a function is in this package (dataclasses generate some methods)."""
    file = function.__code__.co_filename
    return file == "<string>" or os.path.realpath(file).startswith(os.path.realpath(PACKAGE))


class Names:
    """Texts for the settings of modules; a module among them is represented by its name in the model."""

    def __init__(self, modules: Mapping[nn.Module, str]) -> None:
        self._modules = modules

    def of(self, value: Any, place: str) -> str:
        """A text that is equal for equal values.

        Raises:
            NoFingerprint: for a value of an unknown type; `place` names it in the text.
        """
        if value is None or isinstance(value, bool | int | float | complex | str | bytes | Path):
            return f"{type(value).__name__} {value!r}"
        if isinstance(value, torch.dtype | torch.device | enum.Enum | range | slice):
            return repr(value)
        if isinstance(value, SizeCache):
            return "SizeCache"
        if isinstance(value, nn.Module) and value in self._modules:
            return f"module {self._modules[value]}"
        if type(value) is Tensor:
            digest = hashlib.sha256()
            _tensor(digest, value)
            return f"tensor {digest.hexdigest()}"
        if isinstance(value, Mapping):
            parts = (f"{self.of(k, place)}: {self.of(v, place)}" for k, v in value.items())
            return f"{{{', '.join(parts)}}}"
        if isinstance(value, set | frozenset):
            return f"set {sorted(self.of(part, place) for part in value)}"
        if isinstance(value, list | tuple):
            return f"{type(value).__name__}({', '.join(self.of(part, place) for part in value)})"
        if dataclasses.is_dataclass(value) and type(value).__module__.startswith("tetravit."):
            fields = ((f.name, getattr(value, f.name)) for f in dataclasses.fields(value))
            return f"{type(value).__qualname__}({', '.join(f'{k}={self.of(v, place)}' for k, v in fields)})"
        if isinstance(value, functools.partial):
            return f"partial {self.of((value.func, value.args, value.keywords), place)}"
        if isinstance(value, type) or inspect.isroutine(value):
            return self._function(value, place)
        raise NoFingerprint(f"{place} is a {type(value).__qualname__}")

    def _function(self, value: Any, place: str) -> str:
        home, name = getattr(value, "__module__", None) or "", getattr(value, "__qualname__", "<lambda>")
        known = home.partition(".")[0] in ("torch", "tetravit", "builtins", "math")
        if not known or "<" in name or getattr(value, "__self__", None) not in (None, sys.modules.get(home)):
            raise NoFingerprint(f"{place} is the function {home}.{name}")
        if inspect.isfunction(value) and home.startswith("tetravit.") and not _is_ours(value):
            raise NoFingerprint(f"{place} is replaced")
        return f"{home}.{name}"


def _tensor(digest: "hashlib._Hash", tensor: Tensor) -> None:
    digest.update(f"{tensor.dtype} {tuple(tensor.shape)} ".encode())
    if tensor.numel():
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
