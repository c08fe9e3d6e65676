"""The contract of backends, and the captured graph that graph programs start from.

Shapes: B batch, C channels, Hi Wi image.
"""

import copy
import io
import os
import sys
import tempfile
import warnings
from abc import ABC, abstractmethod
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, redirect_stderr, redirect_stdout, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram
from torch.nn.utils.fusion import fuse_conv_bn_eval

from tetravit.backbones import Backbone
from tetravit.runtimes.parts.onnx_graph import capture as capture_size
from tetravit.runtimes.parts.onnx_graph import to_onnx

SMALLEST, LARGEST = 64, 4096  # pixels a side that a captured graph takes; below, the deepest map is one cell
MOST = 4096  # images per batch
KEPT = 16  # compiled programs that stay in memory, one per shape
SIZES = 4  # image sizes with a graph of their own; one graph serves all others
HELD = 2  # graphs that stay in memory if they are not kept in files

Outputs = Tensor | list[Tensor]
Runner = Callable[[Tensor], Outputs]
Program = TypeVar("Program")


class CannotRun(ValueError):
    """A backend cannot run a model on this machine; the text gives the reason."""


@dataclass(frozen=True)
class Way:
    """How a backend uses the processor.

    threads: number of computing threads. split: whether a batch is split into equal parts that run side by side, each
    on threads of its own.
    """

    threads: int
    split: bool = True


class Programs:
    """Compiled programs of a model on disk, by name. This one keeps nothing."""

    def read(self, name: str) -> bytes | None:
        """The program of that name, unchanged since it was kept; None: there is none."""
        return None

    def keep(self, name: str, program: bytes) -> None:
        """Keep a program, if possible. It must be data: reading it must not execute code from it."""


class Keepable(ABC):
    """A runner whose compiled programs can be kept."""

    @abstractmethod
    def __call__(self, images: Tensor) -> Outputs: ...

    @abstractmethod
    def restore(self, shape: Sequence[int]) -> bool:
        """Read the kept program for images of this shape; returns whether there is one."""

    @abstractmethod
    def keep(self, shape: Sequence[int]) -> None:
        """Keep the program for images of this shape, which has run."""


class Graphs:
    """ONNX graphs of a model in float32, each exported once and shared by all backends and types.

    model: images -> tensors; it is not changed. one_size: one graph per image size, for the first `SIZES` sizes;
    False: one graph for all sizes, which takes several times as long to export. file: name of a graph -> its file
    from an earlier export, or None. keep: name and graph -> the file that keeps it, or None. programs: the compiled
    programs that are kept beside them.
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        one_size: bool = False,
        file: Callable[[str], Path | None] = lambda name: None,
        keep: Callable[[str, bytes], Path | None] = lambda name, graph: None,
        programs: "Programs | None" = None,
    ) -> None:
        self.model, self.one_size = model, one_size
        self.programs = programs or Programs()
        self._file, self._keep = file, keep
        self._sizes: set[str] = set()  # that have a graph of their own
        self._graphs: OrderedDict[str, Path | bytes | CannotRun] = OrderedDict()

    def of(self, example: Tensor) -> Path | bytes:
        """The graph for images like `example`, weights included: its file, or its bytes if it is not kept.

        Raises:
            CannotRun: if there is none.
        """
        name = self._name(example)
        if name not in self._graphs:
            self._graphs[name] = self._file(name) or self._export(name, example)
            held = [key for key, graph in self._graphs.items() if isinstance(graph, bytes)]
            for key in held[:-HELD]:  # of those that are in memory
                del self._graphs[key]
        graph = self._graphs[name]
        if isinstance(graph, CannotRun):
            raise graph
        return graph

    def _name(self, example: Tensor) -> str:
        parameter = next(self.model.parameters(), None)
        kind = "" if parameter is None or parameter.dtype == torch.float32 else f"-{parameter.dtype}"
        exact = f"{example.shape[2]}x{example.shape[3]}{kind}.onnx"
        every = f"any{kind}.onnx"
        if not self.one_size or (exact not in self._sizes and len(self._sizes) >= SIZES):
            return every
        self._sizes.add(exact)
        return exact

    def _export(self, name: str, example: Tensor) -> Path | bytes | CannotRun:
        parameter = next(self.model.parameters(), None)
        whole = parameter is None or parameter.dtype == torch.float32
        model = self.model if whole else copy.deepcopy(self.model).float()
        try:
            graph = exported(model, example.float(), one_size=not name.startswith("any"))
        except CannotRun as error:
            return error
        return self._keep(name, graph) or graph


def exported(model: nn.Module, example: Tensor, *, one_size: bool) -> bytes:
    """A model as an ONNX graph, weights included.

    Raises:
        CannotRun: if there is none.
    """
    if one_size:
        with suppress(Exception):  # torch may convert what our conversion does not
            prepare(model, example)
            return bytes(to_onnx(capture_size(model, example)).SerializeToString())
    return bytes(onnx_form(capture(model, example)).SerializeToString())


class Source:
    """The input of a backend: a model, which it must not change, example images, threads, and graphs.

    way: None: all threads of torch, the batch split. graphs: None: new ones of `model`.
    """

    def __init__(
        self, model: nn.Module, example: Tensor, way: Way | None = None, graphs: Graphs | None = None
    ) -> None:
        self.model, self.example = model, example
        self.way = way or Way(torch.get_num_threads())
        self.graphs = graphs or Graphs(model)

    @property
    def onnx(self) -> bytes:
        """The graph for images like the example in float32 as ONNX, weights included.

        Raises:
            CannotRun: if there is none.
        """
        graph = self.graphs.of(self.example)
        return graph.read_bytes() if isinstance(graph, Path) else graph


def all_threads(batch: int, threads: int, free: int) -> Sequence[Way]:
    """The only setting of a backend without options."""
    return (Way(threads),)


@dataclass(frozen=True)
class Backend:
    """One way of running a model, a row of the menu.

    build: a `Source` -> a function of images. ready: the reason why it is not available on this machine; "" if it is.
    devices: types of devices it runs on. smallest, largest: image sides in pixels that it accepts; other images run
    on the plain model. compared: its outputs are compared with those of the plain model once per size. slow: building
    takes a minute, so that `auto` includes it only on other devices than processors, or if eager is the only other
    backend. ways: (images per call, threads, threads with a core of their own) -> settings, the likely fastest first.
    parts: (images per call, setting) -> number of parts of the batch.
    """

    build: Callable[[Source], Runner]
    ready: Callable[[], str] = lambda: ""
    devices: tuple[str, ...] = ("cpu",)
    smallest: int = 1
    largest: int = 2**31
    compared: bool = False
    slow: bool = False
    ways: Callable[[int, int, int], Sequence[Way]] = all_threads
    parts: Callable[[int, Way], int] = lambda batch, way: 1


def over_same_tensors(model: nn.Module) -> nn.Module:
    """A copy of all modules that shares the parameters and buffers of `model`."""
    tensors: dict[int, Any] = {id(x): x for x in (*model.parameters(), *model.buffers())}
    return copy.deepcopy(model, tensors)


def folded(model: nn.Module) -> nn.Module:
    """A copy of the model after `fold`; it shares all weights that folding does not change."""
    part = over_same_tensors(model)
    fold(part)
    return part


def fold(model: nn.Module) -> None:
    """Merge every batch norm that follows a convolution in a `Sequential` into that convolution."""
    for module in list(model.modules()):
        if not isinstance(module, nn.Sequential):
            continue
        for i in range(len(module) - 1):
            conv, norm = module[i], module[i + 1]
            if type(conv) is nn.Conv2d and isinstance(norm, nn.BatchNorm2d) and not norm.training:
                module[i], module[i + 1] = fuse_conv_bn_eval(conv, norm), nn.Identity()


def prepare(model: nn.Module, example: Tensor) -> None:
    """Let all backbones in `model` choose the form that is fastest for images like `example`."""
    for module in model.modules():
        if isinstance(module, Backbone):
            module.prepare_for_export(*example.shape[2:])


def capture(
    model: nn.Module, example: Tensor, *others: Tensor, multiple: int = 1, smallest: int = SMALLEST
) -> ExportedProgram:
    """The graph of a model for images of any batch, `smallest` to `LARGEST` pixels a side.

    Args:
        model: called with images and `others`.
        example: images (B, C, Hi, Wi) of the size for which the graph should be fast.
        others: further inputs of the model, one row per image.
        multiple: divisor of all image sides.
        smallest: smallest side in pixels, a multiple of `multiple`.

    Raises:
        CannotRun: if no graph is valid for all sizes.
    """
    prepare(model, example)
    # With a batch of one, or a square, the exporter would specialise the graph for such images.
    height, width = (max(smallest + 32, side) // multiple * multiple for side in example.shape[2:])
    if height == width:
        width += max(32, multiple)
    given = (x.new_ones(2, *x.shape[1:]) for x in others)
    images = example.new_zeros(2, example.shape[1], height, width)
    names = ("height", "width") if multiple == 1 else ("rows", "columns")
    rows, columns = (Dim(name, min=smallest // multiple, max=LARGEST // multiple) for name in names)
    sides = {2: rows, 3: columns} if multiple == 1 else {2: multiple * rows, 3: multiple * columns}
    batch = Dim("batch", min=1, max=MOST)
    dims = ({0: batch, **sides}, *({0: batch} for _ in others))
    try:
        with torch.no_grad():
            return torch.export.export(model, (images, *given), dynamic_shapes=dims)
    except Exception as error:
        raise CannotRun(f"the graph cannot be captured for every size: {first_line(error)}") from error


def onnx_form(
    program: ExportedProgram, inputs: Sequence[str] | None = None, outputs: Sequence[str] | None = None
) -> Any:
    """A graph as ONNX, weights included: an `onnx.ModelProto`. inputs, outputs: names; None: those of torch.

    Raises:
        CannotRun: if there is none.
    """
    try:
        with warnings.catch_warnings(), redirect_stdout(io.StringIO()):  # the exporter prints its progress
            warnings.simplefilter("ignore")
            exported_program = torch.onnx.export(
                program,
                dynamo=True,
                verbose=False,
                input_names=inputs,
                output_names=outputs,
                custom_translation_table={
                    torch.ops.aten.scaled_dot_product_attention.default: _attention_form()
                },
            )
            assert exported_program is not None
            return exported_program.model_proto
    except Exception as error:
        raise CannotRun(f"the graph has no ONNX form: {first_line(error)}") from error


def _attention_form() -> Callable[..., Any]:
    """Attention in ONNX without the reshapes of torch's own conversion."""
    from onnxscript import opset18 as op

    def attention(  # type: ignore[no-untyped-def]
        query, key, value, attn_mask=None, dropout_p=0.0, is_causal=False, scale=None, enable_gqa=False
    ):
        if dropout_p or is_causal or enable_gqa:
            raise NotImplementedError("attention with dropout, a causal mask or shared heads")
        if scale is None:
            scale = query.shape[-1] ** -0.5
        scores = op.MatMul(op.Mul(query, op.CastLike(scale, query)), op.Transpose(key, perm=[0, 1, 3, 2]))
        if attn_mask is not None and attn_mask.dtype.name == "BOOL":
            scores = op.Where(attn_mask, scores, op.CastLike(float("-inf"), query))
        elif attn_mask is not None:
            scores = op.Add(scores, attn_mask)
        return op.MatMul(op.Softmax(scores, axis=-1), value)

    return attention


def images_of(shape: Sequence[int]) -> Tensor:
    """Zero images of a shape that take no memory: a view of one number."""
    return torch.zeros(1).expand(*shape)


class PerShape(Generic[Program]):
    """Programs compiled for one shape each; the `KEPT` last used ones stay."""

    def __init__(self, compile: Callable[[Sequence[int]], Program]) -> None:
        self._compile = compile
        self._kept: OrderedDict[tuple[int, ...], Program] = OrderedDict()

    def __call__(self, shape: Sequence[int]) -> Program:
        key = tuple(shape)
        if key not in self._kept:
            self.add(key, self._compile(key))
        self._kept.move_to_end(key)
        return self._kept[key]

    def add(self, shape: Sequence[int], program: Program) -> None:
        """Take a program that was compiled elsewhere."""
        self._kept[tuple(shape)] = program
        if len(self._kept) > KEPT:
            self._kept.popitem(last=False)


@contextmanager
def quiet() -> Iterator[None]:
    """Suppress the standard error of exporters and compilers, of Python and of native code.

    It is printed if the body raises, unless the operating system refused something. With TETRAVIT_DEBUG set nothing
    is suppressed. The redirection affects the whole process, other threads included.
    """
    if os.environ.get("TETRAVIT_DEBUG", "").lower() not in ("", "0", "false", "no"):
        yield
        return
    with tempfile.TemporaryFile("w+", buffering=1, encoding="utf-8", errors="replace") as kept:
        try:
            with _stderr_descriptor_to(kept.fileno()), redirect_stderr(kept):
                yield
        except OSError:  # of a disk, say; what an exporter printed does not explain it
            raise
        except Exception:
            kept.seek(0)
            sys.stderr.write(kept.read())
            raise


@contextmanager
def _stderr_descriptor_to(other: int) -> Iterator[None]:
    """Redirect standard error of the process, if it is open, to another file descriptor."""
    try:
        saved = os.dup(2)
    except OSError:
        yield
        return
    try:
        with suppress(Exception):
            sys.stderr.flush()
        os.dup2(other, 2)
        yield
    finally:
        with suppress(Exception):
            sys.stderr.flush()
        os.dup2(saved, 2)
        os.close(saved)


def needs(package: str, extra: str) -> str:
    """Why a backend of an optional package is not available; "" where the package is installed."""
    from importlib.util import find_spec

    return "" if find_spec(package) else f"it needs the extra: pip install 'tetravit[{extra}]'"


def first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
