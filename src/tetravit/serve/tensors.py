"""Tensors of the Open Inference Protocol, version 2: JSON, and its extension for binary data.

Source: kserve/open-inference-protocol, specification of HTTP/REST; triton-inference-server, binary tensor data.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from tetravit.serve.limits import Refused
from tetravit.serve.replies import text_of

INPUT = "images"
DATATYPES = {"float32": "FP32", "int64": "INT64", "bool": "BOOL"}
BINARY_HEADER = "inference-header-content-length"


@dataclass(frozen=True)
class Call:
    """A request: images float32 (B, C, h, w), its id, the outputs it names and whether each is binary."""

    images: np.ndarray
    id: str | None
    outputs: Mapping[str, bool]


def read(body: bytes, header_length: str | None, known: Sequence[str]) -> Call:
    """A body as a call. known: names of the outputs of the model.

    Raises:
        Refused: 400 in one line for what does not follow the protocol.
    """
    end = len(body)
    if header_length is not None:
        if not (header_length.isascii() and header_length.isdecimal()) or not 0 < int(
            header_length[:9]
        ) <= len(body):
            raise Refused(
                400, f"Inference-Header-Content-Length is 1 to {len(body)} bytes; got {header_length!r}."
            )
        end = int(header_length)
    try:
        request = json.loads(body[:end])
    except (ValueError, RecursionError):
        raise Refused(400, "The body is not JSON.") from None
    if not isinstance(request, dict):
        raise Refused(400, "The body is a JSON object with inputs.")
    number = request.get("id")
    if number is not None and not isinstance(number, str):
        raise Refused(400, "id is text.")
    inputs = request.get("inputs")
    if not isinstance(inputs, list) or len(inputs) != 1 or not isinstance(inputs[0], dict):
        raise Refused(400, f"inputs holds one tensor, {INPUT}.")
    images = _tensor(inputs[0], body[end:])
    return Call(images, number, _outputs(request, known))


def _tensor(entry: Mapping[str, Any], rest: bytes) -> np.ndarray:
    name, shape, datatype = entry.get("name"), entry.get("shape"), entry.get("datatype")
    if name != INPUT:
        raise Refused(400, f"inputs holds one tensor, {INPUT}; got {_short(name)}.")
    if datatype != "FP32":
        raise Refused(400, f"{INPUT} has the datatype FP32; got {_short(datatype)}.")
    if not _is_shape(shape):
        raise Refused(
            400, f"{INPUT} has a shape of four numbers, [B, C, height, width]; got {_short(shape)}."
        )
    assert isinstance(shape, list)
    count = 1
    for side in shape:
        count *= side
    size = _parameters(entry).get("binary_data_size")
    if size is not None:
        if size != len(rest) or size != 4 * count:
            raise Refused(
                400, f"{INPUT} of shape {shape} has {4 * count} bytes; got {len(rest)} after the JSON."
            )
        values = np.frombuffer(rest, "<f4").astype(np.float32)
    else:
        values = _listed(entry.get("data"), count, shape)
    if not np.isfinite(values).all():
        raise Refused(400, f"{INPUT} holds numbers that are not finite.")
    return values.reshape(shape)


def _is_shape(shape: Any) -> bool:
    return (
        isinstance(shape, list)
        and len(shape) == 4
        and all(type(side) is int and 0 < side < 2**31 for side in shape)
    )


def _listed(data: Any, count: int, shape: Sequence[int]) -> np.ndarray:
    if not isinstance(data, list):
        raise Refused(400, f"{INPUT} has data, a list of numbers, or the parameter binary_data_size.")
    try:
        values = np.asarray(data)
    except (ValueError, RecursionError):
        raise Refused(400, "data is a list of numbers, or lists of equal lengths.") from None
    if values.dtype.kind not in "iuf":
        raise Refused(400, "data is a list of numbers, or lists of equal lengths.")
    if values.size != count:
        raise Refused(400, f"{INPUT} of shape {list(shape)} has {count} numbers; got {values.size}.")
    with np.errstate(over="ignore"):
        return values.astype(np.float32)


def _outputs(request: Mapping[str, Any], known: Sequence[str]) -> dict[str, bool]:
    every = _parameters(request).get("binary_data_output") is True
    named = request.get("outputs")
    if named is None:
        return dict.fromkeys(known, every)
    if not isinstance(named, list) or not all(isinstance(entry, dict) for entry in named):
        raise Refused(400, "outputs is a list of objects with a name.")
    chosen = {}
    for entry in named:
        name = entry.get("name")
        if name not in known:
            raise Refused(400, f"The outputs are {', '.join(known)}; got {_short(name)}.")
        chosen[name] = _parameters(entry).get("binary_data", every) is True
    return chosen


def _parameters(entry: Mapping[str, Any]) -> Mapping[str, Any]:
    given = entry.get("parameters")
    if given is not None and not isinstance(given, dict):
        raise Refused(400, "parameters is an object.")
    return given or {}


def write(model: str, call: Call, outputs: Mapping[str, np.ndarray]) -> tuple[bytes, dict[str, str]]:
    """Outputs as a body, and its headers."""
    rows, binary = [], []
    for name, as_bytes in call.outputs.items():
        value = outputs[name]
        row: dict[str, Any] = {
            "name": name,
            "shape": list(value.shape),
            "datatype": DATATYPES[value.dtype.name],
        }
        if as_bytes:
            data = np.ascontiguousarray(value).astype(value.dtype.newbyteorder("<")).tobytes()
            row["parameters"] = {"binary_data_size": len(data)}
            binary.append(data)
        else:
            row["data"] = value.reshape(-1).tolist()
        rows.append(row)
    body: dict[str, Any] = {"model_name": model, "model_version": "1"}
    if call.id is not None:
        body["id"] = call.id
    text = text_of({**body, "outputs": rows})
    if not binary:
        return text, {"content-type": "application/json"}
    headers = {"content-type": "application/octet-stream", BINARY_HEADER: str(len(text))}
    return b"".join([text, *binary]), headers


def joined(parts: Sequence[Mapping[str, np.ndarray]]) -> dict[str, np.ndarray]:
    """Outputs of single images as one batch; rows that an image lacks are zeros, `valid` says which."""
    merged = {}
    for name in parts[0]:
        arrays = [part[name] for part in parts]
        rows = max((a.shape[1] for a in arrays if a.ndim > 1), default=0)
        if any(a.ndim > 1 and a.shape[1] != rows for a in arrays):
            arrays = [
                np.concatenate([a, np.zeros((1, rows - a.shape[1], *a.shape[2:]), a.dtype)], axis=1)
                for a in arrays
            ]
        merged[name] = np.concatenate(arrays)
    return merged


def metadata(model: str, channels: int, classes: int, outputs: Sequence[str], kind: str) -> dict[str, Any]:
    """What the protocol says of a model; -1 is a length that changes. kind: as in `Model`."""
    types = {"labels": "INT64", "valid": "BOOL"}
    shapes: dict[str, list[int]] = {
        "logits": [-1, classes, -1, -1] if kind == "segment" else [-1, classes],
        "boxes": [-1, -1, 4],
        "scores": [-1, -1],
        "labels": [-1, -1],
        "valid": [-1, -1],
        "masks": [-1, -1, -1, -1],
    }
    return {
        "name": model,
        "versions": ["1"],
        "platform": "pytorch",
        "inputs": [{"name": INPUT, "datatype": "FP32", "shape": [-1, channels, -1, -1]}],
        "outputs": [
            {"name": name, "datatype": types.get(name, "FP32"), "shape": shapes.get(name, [-1])}
            for name in outputs
        ],
    }


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
