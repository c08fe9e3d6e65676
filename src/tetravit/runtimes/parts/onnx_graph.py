"""A model for images of one size -> ONNX, by one function per operation.

torch's own conversion decomposes the graph into smaller operations, converts those and fuses them again: 20 seconds
where this takes one. What does not depend on the images is computed here and stored as a constant. An operation
without a function here is an error, and the caller uses torch's own conversion.

The graph is captured for a batch of `BATCH` images, a prime number that is larger than any side: a size that
it divides grows with the batch. A graph with symbolic sizes takes three times as long to capture.

One file: a table with one short function per operation, to be extended when an operation is missing.
"""

import operator
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.export import ExportedProgram
from torch.fx import Node

OPSET = 20
BATCH = 4099


class NoForm(ValueError):
    """An operation that this file cannot convert."""


class Ref(NamedTuple):
    """A tensor of the graph that depends on the images. node: the captured operation, with its shape and type."""

    name: str
    node: Node


class Writer:
    """Nodes and constants of an unfinished graph."""

    def __init__(self) -> None:
        self.nodes: list[Any] = []
        self.constants: dict[str, np.ndarray] = {}
        self.names: dict[str, str] = {}  # of the values of the captured graph that depend on the images
        self._names: dict[tuple[Any, ...], str] = {}
        self._kept: list[Tensor] = []  # constants are identified by address: their tensors must stay alive

    def constant(self, value: Any) -> str:
        """The name of a constant: a tensor, a number, or a sequence of integers."""
        if isinstance(value, Tensor):
            key: tuple[Any, ...] = (
                "tensor",
                value.data_ptr(),
                value.dtype,
                tuple(value.shape),
                value.stride(),
            )
        else:
            key = (type(value), str(value))
        if key not in self._names:
            if isinstance(value, Tensor):
                self._kept.append(value)
                array = value.detach().contiguous().numpy()
            else:
                array = np.asarray(value, np.int64 if isinstance(value, Sequence | int) else np.float32)
            self._names[key] = f"constant_{len(self.constants)}"
            self.constants[self._names[key]] = array
        return self._names[key]

    def add(self, kind: str, *inputs: str, outputs: int = 1, **attributes: Any) -> Any:
        """Add a node; returns the name of its output, or the names of its outputs."""
        from onnx import helper

        names = [f"value_{len(self.nodes)}_{i}" for i in range(outputs)]
        self.nodes.append(helper.make_node(kind, list(inputs), names, **attributes))
        return names[0] if outputs == 1 else names


class Call(NamedTuple):
    """An operation with its arguments, some of which depend on the images."""

    writer: Writer
    node: Node
    arguments: tuple[Any, ...]
    options: dict[str, Any]

    def get(self, place: int, name: str, otherwise: Any = None) -> Any:
        """An argument by position or name."""
        return self.arguments[place] if place < len(self.arguments) else self.options.get(name, otherwise)

    def name(self, place: int) -> str:
        """The name of an argument as a tensor; a number gets the type of the result."""
        return self.named(self.arguments[place])

    def named(self, value: Any) -> str:
        if isinstance(value, Ref):
            return value.name
        if isinstance(value, bool | int | float):
            value = torch.tensor(value, dtype=self.node.meta["val"].dtype)
        return self.writer.constant(value)

    def add(self, kind: str, *inputs: str, **attributes: Any) -> Any:
        return self.writer.add(kind, *inputs, **attributes)

    def ints(self, *values: int) -> str:
        return self.writer.constant(list(values))


Form = Callable[[Call], Any]


def capture(model: nn.Module, example: Tensor) -> ExportedProgram:
    """The graph of a model for `BATCH` images of the size of `example`; the images take no memory.

    Raises:
        NoForm: if the graph cannot be captured.
    """
    try:
        with FakeTensorMode(allow_non_fake_inputs=True):
            images = torch.empty(BATCH, *example.shape[1:])
        with torch.no_grad():
            return torch.export.export(model, (images,))
    except Exception as error:
        raise NoForm(str(error).strip().partition("\n")[0]) from error


def to_onnx(program: ExportedProgram) -> Any:
    """The graph as an `onnx.ModelProto`, weights included; its input is `images` (batch, C, Hi, Wi).

    Raises:
        NoForm: if it has an operation, or shapes, that this file cannot convert.
    """
    from onnx import TensorProto, helper, numpy_helper

    writer, values = Writer(), dict(_given(program))
    images: Node | None = None
    for node in program.graph.nodes:
        if node.op == "placeholder" and node.name not in values:
            if images is not None:
                raise NoForm("a second input")
            images, values[node.name] = node, Ref("images", node)
        elif node.op == "call_function":
            values[node.name] = value = _value(node, values, writer)
            if isinstance(value, Ref):
                writer.names[node.name] = value.name
        elif node.op not in ("placeholder", "output"):
            raise NoForm(node.op)
    assert images is not None
    (results,) = next(node for node in program.graph.nodes if node.op == "output").args
    outputs = [values[node.name] for node in results]
    if not all(isinstance(out, Ref) for out in outputs):
        raise NoForm("an output that does not depend on the images")
    shape = ["batch", *_shape(images)[1:]]
    used = _used(writer.nodes, [out.name for out in outputs])
    read = {name for node in used for name in node.input}
    graph = helper.make_graph(
        used,
        "model",
        [helper.make_tensor_value_info("images", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info(o.name, TensorProto.FLOAT, _dims(o.node)) for o in outputs],
        [numpy_helper.from_array(array, name) for name, array in writer.constants.items() if name in read],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=10)


def _given(program: ExportedProgram) -> Any:
    """The inputs that are weights, buffers or constants, by name."""
    signature = program.graph_signature
    for table in (signature.inputs_to_parameters, signature.inputs_to_buffers):
        for name, target in table.items():
            yield name, program.state_dict.get(target, program.constants.get(target))
    for name, target in signature.inputs_to_lifted_tensor_constants.items():
        yield name, program.constants[target]


def _value(node: Node, values: dict[str, Any], writer: Writer) -> Any:
    """The value of a call: a constant where its arguments are, else a `Ref` or several."""

    def of(argument: Any) -> Any:
        if isinstance(argument, Node):
            return values[argument.name]
        if isinstance(argument, list | tuple):
            return [of(one) for one in argument]
        return argument

    arguments, options = [of(one) for one in node.args], {key: of(one) for key, one in node.kwargs.items()}
    function: Any = node.target
    name = str(function).removesuffix("_.default")
    if not _has_ref([*arguments, *options.values()]) and not _grows(node):
        with torch.no_grad():
            return function(*arguments, **options)
    if function is operator.getitem:
        part = arguments[0][arguments[1]]
        return Ref(part.name, node)
    form = FORMS.get(function if function in FORMS else name)
    if form is None:
        raise NoForm(f"{name} has no form")
    result = form(Call(writer, node, tuple(arguments), options))
    if isinstance(result, list):
        return [Ref(one, node) for one in result]
    return Ref(result.name if isinstance(result, Ref) else result, node)


def _has_ref(values: Sequence[Any]) -> bool:
    return any(isinstance(value, Ref) or (isinstance(value, list) and _has_ref(value)) for value in values)


def _used(nodes: Sequence[Any], outputs: Sequence[str]) -> list[Any]:
    """The nodes on which the outputs depend, in order."""
    wanted, kept = set(outputs), []
    for node in reversed(nodes):
        if wanted & set(node.output):
            kept.append(node)
            wanted |= set(node.input)
    return kept[::-1]


def _shape(node: Node) -> list[int]:
    return list(node.meta["val"].shape)


def _of_batch(size: int) -> bool:
    """Whether a size grows with the batch."""
    return size > 0 and size % BATCH == 0


def _grows(node: Node) -> bool:
    """Whether the result of a call has a size that grows with the batch."""
    values = node.meta.get("val")
    parts = values if isinstance(values, list | tuple) else [values]
    return any(isinstance(part, Tensor) and any(map(_of_batch, part.shape)) for part in parts)


def _dims(node: Node) -> list[int | str]:
    return [f"size_{i}" if _of_batch(size) else size for i, size in enumerate(_shape(node))]


# Operations. Shapes of inputs and outputs are those of the captured graph.


def _same(call: Call) -> Any:
    return call.arguments[0]


def _unary(kind: str) -> Form:
    return lambda call: call.add(kind, call.name(0))


def _binary(kind: str) -> Form:
    def form(call: Call) -> str:
        if call.get(2, "alpha", 1) != 1 or call.options.get("rounding_mode"):
            raise NoForm(f"{kind} with a factor")
        return str(call.add(kind, call.name(0), call.name(1)))

    return form


def _reshape(call: Call) -> str:
    """To the shape of the result, of which one size may grow with the batch."""
    shape = _shape(call.node)
    if sum(map(_of_batch, shape)) > 1:
        raise NoForm("a shape of two sizes that grow with the batch")
    return str(call.add("Reshape", call.name(0), call.ints(*(-1 if _of_batch(s) else s for s in shape))))


def _expand(call: Call) -> str:
    parts = []
    for size in _shape(call.node):
        if _of_batch(size):
            batch = call.add("Shape", "images", start=0, end=1)
            parts.append(batch if size == BATCH else call.add("Mul", batch, call.ints(size // BATCH)))
        else:
            parts.append(call.ints(size))
    return str(call.add("Expand", call.name(0), call.add("Concat", *parts, axis=0)))


def _transposed(call: Call, order: Sequence[int]) -> str:
    return str(call.add("Transpose", call.name(0), perm=list(order)))


def _permute(call: Call) -> str:
    rank = len(_shape(call.node))
    return _transposed(call, [place % rank for place in call.arguments[1]])


def _transpose(call: Call) -> str:
    rank = len(_shape(call.node))
    order, (one, other) = list(range(rank)), (place % rank for place in call.arguments[1:3])
    order[one], order[other] = other, one
    return _transposed(call, order)


def _turned(call: Call) -> str:
    """The last two dimensions exchanged."""
    rank = len(_shape(call.node))
    return _transposed(call, [*range(rank - 2), rank - 1, rank - 2])


def _linear(call: Call) -> str:
    weight, bias = call.arguments[1], call.get(2, "bias")
    turned = (
        call.add("Transpose", weight.name, perm=[1, 0]) if isinstance(weight, Ref) else call.named(weight.t())
    )
    product = call.add("MatMul", call.name(0), turned)
    return str(product if bias is None else call.add("Add", product, call.named(bias)))


def _baddbmm(call: Call) -> str:
    if call.options:
        raise NoForm("baddbmm with factors")
    return str(call.add("Add", call.name(0), call.add("MatMul", call.name(1), call.name(2))))


def _addcmul(call: Call) -> str:
    if call.options.get("value", 1) != 1:
        raise NoForm("addcmul with a factor")
    return str(call.add("Add", call.name(0), call.add("Mul", call.name(1), call.name(2))))


def _lerp(call: Call) -> str:
    start = call.name(0)
    way = call.add("Mul", call.add("Sub", call.name(1), start), call.name(2))
    return str(call.add("Add", start, way))


def _square_root(call: Call) -> str:
    """The root of a sum of squares becomes one operation, without a stored tensor of squares."""
    total = call.node.args[0]
    if isinstance(total, Node) and str(total.target) == "aten.sum.dim_IntList":
        square, axes = total.args[:2]
        if isinstance(square, Node) and str(square.target) == "aten.mul.Tensor":
            one, other = square.args
            if one is other and isinstance(one, Node):
                keep = int(len(_shape(total)) == len(_shape(one)))
                places: Any = axes
                return str(
                    call.add("ReduceL2", call.writer.names[one.name], call.ints(*places), keepdims=keep)
                )
    return str(call.add("Sqrt", call.name(0)))


def _softmax(call: Call) -> str:
    return str(call.add("Softmax", call.name(0), axis=call.arguments[1]))


def _gelu(call: Call) -> str:
    return str(call.add("Gelu", call.name(0), approximate=call.options.get("approximate", "none")))


def _clamp(call: Call) -> str:
    bounds = [call.get(1, "min"), call.get(2, "max")]
    return str(call.add("Clip", call.name(0), *("" if one is None else call.named(one) for one in bounds)))


def _reduce(kind: str) -> Form:
    def form(call: Call) -> str:
        axes, keep = call.get(1, "dim"), call.get(2, "keepdim", False)
        if axes is None or call.options.get("dtype") not in (None, call.node.meta["val"].dtype):
            raise NoForm(f"{kind} over everything, or in another type")
        return str(call.add(kind, call.name(0), call.ints(*axes), keepdims=int(bool(keep))))

    return form


def _layer_norm(call: Call) -> str:
    sides, weight, bias = call.arguments[1], call.get(2, "weight"), call.get(3, "bias")
    weight = torch.ones(*sides) if weight is None else weight
    inputs = [call.name(0), call.named(weight), *([] if bias is None else [call.named(bias)])]
    return str(call.add("LayerNormalization", *inputs, axis=-len(sides), epsilon=call.get(4, "eps", 1e-5)))


def _batch_norm(call: Call) -> str:
    _, weight, bias, mean, variance, training, _, eps, *_ = call.arguments
    if training or weight is None or bias is None:
        raise NoForm("batch norm in training, or without weights")
    names = [call.named(one) for one in (weight, bias, mean, variance)]
    return str(call.add("BatchNormalization", call.name(0), *names, epsilon=eps))


def _conv(call: Call) -> str:
    weight, bias = call.arguments[1], call.get(2, "bias")
    padding = call.get(4, "padding", [0, 0])
    if isinstance(padding, str):
        raise NoForm("padding by name")
    return str(
        call.add(
            "Conv",
            call.name(0),
            call.named(weight),
            *([] if bias is None else [call.named(bias)]),
            kernel_shape=list(_sides(call, weight)),
            strides=call.get(3, "stride", [1, 1]),
            pads=[*padding, *padding],
            dilations=call.get(5, "dilation", [1, 1]),
            group=call.get(6, "groups", 1),
        )
    )


def _conv_transpose(call: Call) -> str:
    weight, bias = call.arguments[1], call.get(2, "bias")
    padding = call.get(4, "padding", [0, 0])
    return str(
        call.add(
            "ConvTranspose",
            call.name(0),
            call.named(weight),
            *([] if bias is None else [call.named(bias)]),
            kernel_shape=list(_sides(call, weight)),
            strides=call.get(3, "stride", [1, 1]),
            pads=[*padding, *padding],
            output_padding=call.get(5, "output_padding", [0, 0]),
            group=call.get(6, "groups", 1),
            dilations=call.get(7, "dilation", [1, 1]),
        )
    )


def _sides(call: Call, weight: Any) -> Sequence[int]:
    if isinstance(weight, Ref):
        raise NoForm("a convolution whose weights depend on the images")
    return tuple(weight.shape[2:])


def _max_pool(call: Call) -> str:
    kernel = call.arguments[1]
    padding = call.get(3, "padding", [0, 0])
    if call.get(5, "ceil_mode", False):
        raise NoForm("pooling that rounds up")
    return str(
        call.add(
            "MaxPool",
            call.name(0),
            kernel_shape=kernel,
            strides=call.get(2, "stride") or kernel,
            pads=[*padding, *padding],
            dilations=call.get(4, "dilation", [1, 1]),
        )
    )


def _cat(call: Call) -> str:
    names = [call.named(one) for one in call.arguments[0]]
    return str(call.add("Concat", *names, axis=call.get(1, "dim", 0)))


def _stack(call: Call) -> str:
    axis = call.get(1, "dim", 0) % len(_shape(call.node))
    names = [call.add("Unsqueeze", call.named(one), call.ints(axis)) for one in call.arguments[0]]
    return str(call.add("Concat", *names, axis=axis))


def _parts(call: Call) -> list[str]:
    """Chunks and splits: the sizes are those of the results."""
    axis, results = call.get(2, "dim", 0), call.node.meta["val"]
    sizes = [result.shape[axis] for result in results]
    if any(map(_of_batch, sizes)):
        raise NoForm("parts of the batch")
    if len(sizes) == 1:
        return [call.name(0)]
    return list(call.add("Split", call.name(0), call.ints(*sizes), outputs=len(sizes), axis=axis))


def _unbind(call: Call) -> list[str]:
    axis, count = call.get(1, "dim", 0), len(call.node.meta["val"])
    names = call.add("Split", call.name(0), call.ints(*[1] * count), outputs=count, axis=axis)
    return [call.add("Squeeze", one, call.ints(axis)) for one in ([names] if count == 1 else names)]


def _select(call: Call) -> str:
    return str(
        call.add("Gather", call.name(0), call.writer.constant(call.arguments[2]), axis=call.arguments[1])
    )


def _slice(call: Call) -> Any:
    axis = call.get(1, "dim", 0)
    start, end, step = call.get(2, "start") or 0, call.get(3, "end"), call.get(4, "step", 1)
    end = 2**63 - 1 if end is None else end
    if start == 0 and step == 1 and _shape(call.node) == _shape(call.arguments[0].node):
        return call.arguments[0]
    if _of_batch(_shape(call.arguments[0].node)[axis]):
        raise NoForm("a slice of the batch")
    return call.add("Slice", call.name(0), call.ints(start), call.ints(end), call.ints(axis), call.ints(step))


def _unsqueeze(call: Call) -> str:
    return str(call.add("Unsqueeze", call.name(0), call.ints(call.arguments[1])))


def _pad(call: Call) -> Any:
    widths, mode, value = call.arguments[1], call.get(2, "mode", "constant"), call.get(3, "value")
    if not any(widths):
        return call.arguments[0]
    if mode != "constant":
        raise NoForm("padding with something else than a constant")
    rank = len(_shape(call.node))
    pads = [0] * (2 * rank)
    for place in range(len(widths) // 2):  # torch begins with the last dimension
        pads[rank - 1 - place], pads[2 * rank - 1 - place] = widths[2 * place], widths[2 * place + 1]
    return call.add("Pad", call.name(0), call.ints(*pads), call.named(float(value or 0.0)))


def _resize(mode: str, **settings: Any) -> Form:
    def form(call: Call) -> Any:
        before, after = _shape(call.arguments[0].node)[2:], _shape(call.node)[2:]
        if mode != "nearest" and call.get(2, "align_corners", False):
            raise NoForm("resizing with aligned corners")
        if before == after:
            return call.arguments[0]
        return call.add("Resize", call.name(0), "", "", call.ints(*after), mode=mode, axes=[2, 3], **settings)

    return form


def _attention(call: Call) -> str:
    query, key, value = (call.name(place) for place in range(3))
    mask = call.get(3, "attn_mask")
    if call.get(4, "dropout_p", 0.0) or call.get(5, "is_causal", False) or call.options.get("enable_gqa"):
        raise NoForm("attention with dropout, a causal mask or shared heads")
    sizes = call.node.args[0].meta["val"].shape  # type: ignore[union-attr]
    scale = call.options.get("scale") or sizes[-1] ** -0.5
    turned = call.add("Transpose", key, perm=[*range(len(sizes) - 2), len(sizes) - 1, len(sizes) - 2])
    scores = call.add("MatMul", call.add("Mul", query, call.named(float(scale))), turned)
    if mask is not None:
        if (mask.node.meta["val"] if isinstance(mask, Ref) else mask).dtype == torch.bool:
            raise NoForm("attention with a mask of truth values")
        scores = call.add("Add", scores, call.named(mask))
    return str(call.add("MatMul", call.add("Softmax", scores, axis=-1), value))


def _norm(call: Call) -> str:
    axes = call.get(2, "dim")
    if call.get(1, "ord", 2) != 2 or axes is None or call.get(4, "dtype") is not None:
        raise NoForm("a norm of another kind")
    return str(
        call.add("ReduceL2", call.name(0), call.ints(*axes), keepdims=int(call.get(3, "keepdim", False)))
    )


def _to(call: Call) -> Any:
    if call.node.meta["val"].dtype != call.arguments[0].node.meta["val"].dtype:
        raise NoForm("a change of type")
    return call.arguments[0]


HALF = {"coordinate_transformation_mode": "half_pixel"}
FORMS: dict[Any, Form] = {
    **dict.fromkeys(("aten.alias.default", "aten.clone.default", "aten.contiguous.default"), _same),
    **dict.fromkeys(
        ("aten.dropout.default", "aten.detach.default", "aten._assert_tensor_metadata.default"), _same
    ),
    **dict.fromkeys(("aten.view.default", "aten.reshape.default", "aten.view_as.default"), _reshape),
    **dict.fromkeys(("aten.unflatten.int", "aten.flatten.using_ints"), _reshape),
    **dict.fromkeys(("aten.chunk.default", "aten.split.Tensor", "aten.split_with_sizes.default"), _parts),
    **dict.fromkeys(("aten.matmul.default", "aten.bmm.default"), _binary("MatMul")),
    **dict.fromkeys(("aten.relu.default", "aten.relu"), _unary("Relu")),
    "aten.add.Tensor": _binary("Add"),
    "aten.addcmul.default": _addcmul,
    "aten.baddbmm.default": _baddbmm,
    "aten.batch_norm.default": _batch_norm,
    "aten.cat.default": _cat,
    **dict.fromkeys(("aten.clamp.default", "aten.clamp_min.default"), _clamp),
    "aten.conv2d.default": _conv,
    "aten.conv_transpose2d.input": _conv_transpose,
    "aten.div.Tensor": _binary("Div"),
    "aten.exp.default": _unary("Exp"),
    "aten.expand.default": _expand,
    "aten.gelu.default": _gelu,
    "aten.layer_norm.default": _layer_norm,
    "aten.lerp.Tensor": _lerp,
    "aten.linalg_vector_norm.default": _norm,
    "aten.linear.default": _linear,
    "aten.mT.default": _turned,
    "aten.max_pool2d.default": _max_pool,
    "aten.mean.dim": _reduce("ReduceMean"),
    "aten.mul.Tensor": _binary("Mul"),
    "aten.pad.default": _pad,
    "aten.permute.default": _permute,
    "aten.scaled_dot_product_attention.default": _attention,
    "aten.select.int": _select,
    "aten.sigmoid.default": _unary("Sigmoid"),
    "aten.slice.Tensor": _slice,
    "aten.softmax.int": _softmax,
    "aten.sqrt.default": _square_root,
    "aten.stack.default": _stack,
    "aten.sub.Tensor": _binary("Sub"),
    "aten.sum.dim_IntList": _reduce("ReduceSum"),
    "aten.tanh.default": _unary("Tanh"),
    "aten.to.dtype": _to,
    "aten.transpose.int": _transpose,
    "aten.unbind.int": _unbind,
    "aten.unsqueeze.default": _unsqueeze,
    "aten.upsample_bicubic2d.vec": _resize("cubic", cubic_coeff_a=-0.75, **HALF),
    "aten.upsample_bilinear2d.vec": _resize("linear", **HALF),
    "aten.upsample_nearest2d.vec": _resize(
        "nearest", coordinate_transformation_mode="asymmetric", nearest_mode="floor"
    ),
}
