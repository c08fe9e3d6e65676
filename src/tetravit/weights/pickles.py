"""Read pickles as data: an interpreter for values, containers and tensors that calls nothing.

A pickle is a program; Python's own reader imports and calls the names in it. This one never imports: a name in the
file becomes a `Global`, calls of the few functions that build tensors are emulated, objects of other classes become
`Inert` records. A pickle that names any other function is rejected, with that name.
"""

import math
import pickletools
import struct
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import IO, Any

import torch
from torch import Tensor

from tetravit.weights.fileformat import BadFile

# fmt: off
# Modules that do not belong in a checkpoint. Nothing of theirs would run here: naming them is reason to stop.
FORBIDDEN = frozenset(
    {
        "__builtin__", "_ctypes", "_io", "_operator", "_pickle", "_posixsubprocess", "_socket", "_thread",
        "asyncio", "bdb", "builtins", "cProfile", "cloudpickle", "code", "codeop", "commands", "ctypes", "dill",
        "distutils", "doctest", "ensurepip", "fileinput", "ftplib", "gc", "glob", "http", "imp", "importlib",
        "inspect", "io", "joblib", "linecache", "marshal", "mmap", "multiprocessing", "nt", "ntpath",
        "operator", "os", "pdb", "pickle", "pip", "pkgutil", "platform", "popen2", "posix", "posixpath",
        "profile", "pty", "requests", "runpy", "setuptools", "shelve", "shutil", "signal", "site", "smtplib",
        "socket", "socketserver", "sqlite3", "ssl", "subprocess", "sys", "tempfile", "threading", "timeit",
        "trace", "types", "unittest", "urllib", "venv", "webbrowser", "xmlrpc", "zipimport",
    }
)
HARMLESS_BUILTINS = frozenset(
    {
        "bool", "bytearray", "bytes", "complex", "dict", "float", "frozenset", "int", "list", "long", "object",
        "range", "set", "slice", "str", "tuple", "unicode", "xrange",
    }
)
# Classes and constructors in lower case.
HARMLESS_NAMES = frozenset(
    {
        "numpy.ndarray", "numpy.dtype", "numpy.core.multiarray.scalar", "numpy._core.multiarray.scalar",
        "numpy.core.multiarray._reconstruct", "numpy._core.multiarray._reconstruct",
        "numpy.core.numeric._frombuffer", "numpy._core.numeric._frombuffer", "_codecs.encode",
        "collections.deque", "datetime.date", "datetime.datetime", "datetime.time", "datetime.timedelta",
        "datetime.timezone", "functools.partial", "re._compile", "torch.device", "torch.dtype",
    }
)
# fmt: on
HARMLESS_PREFIXES = ("numpy.random._pickle.",)

DTYPES = {
    "Double": torch.float64,
    "Float": torch.float32,
    "Half": torch.float16,
    "BFloat16": torch.bfloat16,
    "ComplexDouble": torch.complex128,
    "ComplexFloat": torch.complex64,
    "Long": torch.int64,
    "Int": torch.int32,
    "Short": torch.int16,
    "Char": torch.int8,
    "Byte": torch.uint8,
    "Bool": torch.bool,
    "Untyped": torch.uint8,
}

DAMAGE = (ValueError, TypeError, KeyError, IndexError, AttributeError, OverflowError, EOFError, struct.error)


class Refused(BadFile):
    """The pickle names something that tensors never need. `str` is that name."""


@dataclass(frozen=True)
class Global:
    """A name in the file: "module.name". It is never resolved."""

    name: str


@dataclass(eq=False)
class Inert:
    """An object of some class, reduced to its data in the file."""

    name: str
    args: tuple[Any, ...] = ()
    state: Any = None
    items: list[Any] = field(default_factory=list)

    def __repr__(self) -> str:
        return f"<{self.name}>"


@dataclass
class Storage:
    """Storage (n,) behind tensors; None while only the structure of a file is read."""

    data: Tensor | None
    dtype: torch.dtype


class Machine:
    """Runs one pickle.

    persistent: resolves a persistent id, which torch files use for storages.

    After `run`, `inert` holds the names of all classes that became records.
    """

    def __init__(self, persistent: Callable[[Any], Any] | None = None) -> None:
        self.persistent = persistent
        self.inert: set[str] = set()

    def run(self, file: IO[bytes]) -> Any:
        """The value of the pickle at the position of `file`, which then is after the pickle.

        Raises:
            Refused: if the pickle names something that tensors do not need.
            BadFile: if it is damaged, or not a pickle.
        """
        self.stack: list[Any] = []
        self.marks: list[int] = []
        self.memo: dict[int, Any] = {}
        try:
            for opcode, arg, _ in pickletools.genops(file):
                self._step(opcode.name, arg)
            return self.stack.pop()
        except BadFile:
            raise
        except DAMAGE as error:
            raise BadFile(f"it is no pickle, or a damaged one ({error})") from None

    def _step(self, op: str, arg: Any) -> None:
        stack = self.stack
        match op:
            case "PROTO" | "FRAME" | "STOP":
                pass
            case "MARK":
                self.marks.append(len(stack))
            case "POP":
                stack.pop()
            case "POP_MARK":
                self._above_mark()
            case "DUP":
                stack.append(stack[-1])
            case "NONE" | "NEWTRUE" | "NEWFALSE":
                stack.append({"NONE": None, "NEWTRUE": True, "NEWFALSE": False}[op])
            case "EMPTY_DICT" | "EMPTY_LIST" | "EMPTY_TUPLE":
                stack.append({"EMPTY_DICT": dict, "EMPTY_LIST": list, "EMPTY_TUPLE": tuple}[op]())
            case "EMPTY_SET" | "FROZENSET":
                stack.append(Inert("builtins.set", items=self._above_mark() if op == "FROZENSET" else []))
            case "DICT" | "LIST" | "TUPLE":
                items = self._above_mark()
                stack.append(_pairs(items) if op == "DICT" else tuple(items) if op == "TUPLE" else items)
            case "TUPLE1" | "TUPLE2" | "TUPLE3":
                count = int(op[-1])
                _need(stack, count)
                stack[-count:] = [tuple(stack[-count:])]
            case "SETITEM":
                value, key = stack.pop(), stack.pop()
                _add(stack[-1], [key, value], dict)
            case "SETITEMS" | "APPENDS" | "ADDITEMS":
                items = self._above_mark()
                _add(stack[-1], items, dict if op == "SETITEMS" else list)
            case "APPEND":
                item = stack.pop()
                _add(stack[-1], [item], list)
            case "PUT" | "BINPUT" | "LONG_BINPUT":
                self.memo[arg] = stack[-1]
            case "MEMOIZE":
                self.memo[len(self.memo)] = stack[-1]
            case "GET" | "BINGET" | "LONG_BINGET":
                stack.append(self.memo[arg])
            case "GLOBAL":
                stack.append(self._name(*arg.split(" ", 1)))
            case "STACK_GLOBAL":
                name, module = stack.pop(), stack.pop()
                stack.append(self._name(module, name))
            case "REDUCE" | "NEWOBJ":
                args, function = stack.pop(), stack.pop()
                stack.append(self._call(function, args))
            case "NEWOBJ_EX":
                kwargs, args, function = stack.pop(), stack.pop(), stack.pop()
                stack.append(self._call(function, (*args, kwargs)))
            case "INST":
                stack.append(self._call(self._name(*arg.split(" ", 1)), tuple(self._above_mark())))
            case "OBJ":
                function, *args = self._above_mark()
                stack.append(self._call(function, tuple(args)))
            case "BUILD":
                state = stack.pop()
                if isinstance(stack[-1], Inert):
                    stack[-1].state = state
                elif not isinstance(stack[-1], (dict, Tensor)):  # their extra attributes are not weights
                    raise ValueError(f"a state for {type(stack[-1]).__name__}")
            case "PERSID" | "BINPERSID":
                if self.persistent is None:
                    raise ValueError("a storage outside a torch file")
                stack.append(self.persistent(arg if op == "PERSID" else stack.pop()))
            case "EXT1" | "EXT2" | "EXT4" | "NEXT_BUFFER" | "READONLY_BUFFER":
                raise ValueError(f"opcode {op}")
            case _:  # numbers, strings, bytes: the value is in the opcode
                stack.append(arg)

    def _above_mark(self) -> list[Any]:
        mark = self.marks.pop()
        items = self.stack[mark:]
        del self.stack[mark:]
        return items

    def _name(self, module: str, name: str) -> Global:
        if not isinstance(module, str) or not isinstance(name, str):
            raise TypeError("a name that is no text")
        root = module.split(".")[0]
        harmless = module in ("builtins", "__builtin__") and name in HARMLESS_BUILTINS
        if root in FORBIDDEN and not harmless:
            raise Refused(f"{module}.{name}")
        return Global(f"{module}.{name}")

    def _call(self, function: Any, args: Any) -> Any:
        if not isinstance(function, Global) or not isinstance(args, tuple):
            raise TypeError("a call of something without a name")
        name = function.name
        if name in REBUILD:
            return REBUILD[name](self, *args)
        last = name.rsplit(".", 1)[-1].lstrip("_")
        harmless = name in HARMLESS_NAMES or name.startswith(
            (*HARMLESS_PREFIXES, "builtins.", "__builtin__.")
        )
        if not last[:1].isupper() and not harmless:  # lower case: a function
            raise Refused(name)
        self.inert.add(name)
        return Inert(name, args)


def view_of(storage: Any, offset: int, size: tuple[int, ...], stride: tuple[int, ...]) -> Tensor | None:
    """A tensor over a storage, with a bounds check; None if the storage is not loaded."""
    if not isinstance(storage, Storage):
        raise TypeError("a tensor without a storage")
    if storage.data is None:
        return None
    dims = (offset, *size, *stride)
    if len(size) != len(stride) or not all(isinstance(d, int) and d >= 0 for d in dims):
        raise ValueError("a tensor with a negative shape")
    count = math.prod(size)
    last = offset + sum((s - 1) * step for s, step in zip(size, stride, strict=True))
    if count and (last >= len(storage.data) or count > len(storage.data)):
        raise ValueError("a tensor larger than its storage")
    return storage.data[offset if count else 0 :].as_strided(size, stride)


def _tensor(machine: Machine, storage: Any, offset: Any, size: Any, stride: Any, *rest: Any) -> Any:
    return view_of(storage, offset, size, stride)


def _tensor_of_type(machine: Machine, storage: Any, offset: int, size: Any, stride: Any, *rest: Any) -> Any:
    """`_tensor` with the dtype in the call: (requires_grad, hooks, dtype, ...)."""
    dtype = getattr(torch, rest[2].name.removeprefix("torch."), None)
    if not isinstance(dtype, torch.dtype) or not isinstance(storage, Storage):
        raise TypeError("a tensor without a type")
    if storage.data is not None:
        storage = Storage(storage.data.view(torch.uint8).view(dtype), dtype)
    return view_of(storage, offset, size, stride)


def _first(machine: Machine, value: Any, *rest: Any) -> Any:
    return value


def _dict(machine: Machine, *args: Any) -> dict[Any, Any]:
    """OrderedDict(), OrderedDict([(key, value), ...]), defaultdict(factory): the entries follow, or are arguments."""
    pairs = args[0] if args and isinstance(args[0], (list, tuple)) else ()
    return _pairs([part for key, value in pairs for part in (key, value)])


def _object(machine: Machine, kind: Any, *args: Any) -> Any:
    """copyreg's constructor call for "an object of this class"."""
    if not isinstance(kind, Global):
        raise TypeError("an object without a class")
    machine.inert.add(kind.name)
    return Inert(kind.name, args)


def _subclass(machine: Machine, function: Any, kind: Any, args: Any, state: Any) -> Any:
    return machine._call(function, args)


REBUILD: dict[str, Callable[..., Any]] = {
    "collections.OrderedDict": _dict,
    "collections.defaultdict": _dict,
    "collections.Counter": _dict,
    "torch._utils._rebuild_tensor": _tensor,
    "torch._utils._rebuild_tensor_v2": _tensor,
    "torch._utils._rebuild_tensor_v3": _tensor_of_type,
    "torch._utils._rebuild_parameter": _first,
    "torch._utils._rebuild_parameter_with_state": _first,
    "torch._tensor._rebuild_from_type": _subclass,
    "torch._tensor._rebuild_from_type_v2": _subclass,
    "torch.Size": _first,
    "copyreg._reconstructor": _object,
    "copy_reg._reconstructor": _object,
    "copyreg.__newobj__": _object,
    "copyreg.__newobj_ex__": _object,
}


def _add(target: Any, items: list[Any], kind: type) -> None:
    """Add items to a container; for a dict in pairs."""
    if isinstance(target, Inert):
        target.items += items
    elif kind is dict and isinstance(target, dict):
        target.update(_pairs(items))
    elif kind is list and isinstance(target, list):
        target += items
    else:
        raise TypeError(f"items for {type(target).__name__}")


def _pairs(items: Iterable[Any]) -> dict[Any, Any]:
    items = list(items)
    return {_key(key): value for key, value in zip(items[::2], items[1::2], strict=True)}


def _key(key: Any) -> Any:
    """A key with constant hashing time: nested tuples could share their parts exponentially often."""
    parts = key if isinstance(key, tuple) else (key,)
    if any(isinstance(part, (tuple, list, dict)) for part in parts):
        raise TypeError("a nested key")
    return key


def _need(stack: list[Any], count: int) -> None:
    if len(stack) < count:
        raise IndexError("stack underflow")
