"""The description of the routes as OpenAPI 3.1."""

from collections.abc import Sequence
from importlib.metadata import version
from typing import Any

from tetravit.predictors.base import Option, real, whole
from tetravit.serve.limits import Limits
from tetravit.serve.served import Served
from tetravit.serve.tensors import INPUT

JSON = "application/json"
IMAGES = (
    "image/jpeg",
    "image/png",
    "image/webp",
    "image/gif",
    "image/bmp",
    "image/tiff",
    "application/octet-stream",
)
REFUSALS = {
    "400": "A parameter or the body is invalid.",
    "404": "There is no such model.",
    "408": "The body did not arrive within the deadline.",
    "413": "The body, or the image in it, is too large.",
    "415": "The body is a form, or packed.",
    "422": "The image cannot be read.",
    "503": "The server has too many requests, or is not ready. See Retry-After.",
    "504": "No result within the deadline.",
}


def description(models: Sequence[Served], limits: Limits) -> dict[str, Any]:
    """The routes, with the models and limits of this server."""
    names = [served.name for served in models]
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "tetravit",
            "version": version("tetravit"),
            "description": f"Predictions of {', '.join(names)}. Bodies up to {limits.body_mib:g} MiB, images up to "
            f"{limits.megapixels:g} million pixels.",
        },
        "paths": {
            "/v1/predict": {"post": _predict(models, names)},
            "/v1/models": {
                "get": _get("Models, their classes and options; limits.", _object("models", "limits"))
            },
            "/health/live": {"get": _get("Whether the process runs.", _object("live"))},
            "/health/ready": {"get": _get("Whether the models are warm.", _object("ready"), "503")},
            "/metrics": {"get": _get("Counters for Prometheus.", {"type": "string"}, kind="text/plain")},
            "/v2": {"get": _get("The server.", _object("name", "version", "extensions"))},
            "/v2/health/live": {"get": _get("Whether the process runs.", _object("live"))},
            "/v2/health/ready": {"get": _get("Whether the models are warm.", _object("ready"), "503")},
            "/v2/models/{name}": {
                "parameters": [_name(names)],
                "get": _get("Inputs and outputs of a model.", _object("name", "inputs", "outputs"), "404"),
            },
            "/v2/models/{name}/ready": {
                "parameters": [_name(names)],
                "get": _get("Whether a model is warm.", _object("name", "ready"), "404", "503"),
            },
            "/v2/models/{name}/infer": {"parameters": [_name(names)], "post": _infer()},
        },
        "components": {"schemas": {"Error": _error(), "Tensor": _tensor(), "Prediction": _prediction()}},
    }


def _predict(models: Sequence[Served], names: Sequence[str]) -> dict[str, Any]:
    options: dict[str, Option] = {}
    for served in models:
        options |= served.options
    parameters = [
        _query("model", {"type": "string", "enum": list(names)}, f"Which model; default {names[0]}."),
        _query(
            "draw",
            {"type": "string", "enum": ["0", "1"]},
            "1: the picture with the prediction drawn into it.",
        ),
        _query(
            "masks",
            {"type": "string", "enum": ["rle", "png", "none"]},
            "Masks as COCO's run lengths, as PNG in base64, or none; default rle.",
        ),
        *(_query(o.name, _schema(o), o.help) for o in options.values()),
        *_explanations(models),
    ]
    return {
        "summary": "Predict an image.",
        "operationId": "predict",
        "parameters": parameters,
        "requestBody": {
            "required": True,
            "description": "The image itself, in any common format.",
            "content": {kind: {"schema": {"type": "string", "format": "binary"}} for kind in IMAGES},
        },
        "responses": {
            "200": {
                "description": "The prediction; with draw or explain a picture.",
                "content": {
                    JSON: {"schema": {"$ref": "#/components/schemas/Prediction"}},
                    "image/png": {"schema": {"type": "string", "format": "binary"}},
                },
            },
            **_refusals(*REFUSALS),
        },
    }


def _explanations(models: Sequence[Served]) -> list[dict[str, Any]]:
    methods = sorted({name for served in models for name in served.methods})
    if not methods:
        return []
    return [
        _query(
            "explain",
            {"type": "string", "enum": methods},
            "The map of a method over the picture, instead of the prediction; with draw all maps and their scales.",
        ),
        _query(
            "class",
            {"type": "string"},
            "With explain: a class by name or number; default: the predicted one.",
        ),
        _query("layer", {"type": "string"}, "With explain: a module of the backbone, or its number."),
        _query("head", {"type": "integer", "minimum": 0}, "With explain: one head."),
    ]


def _infer() -> dict[str, Any]:
    tensors = {"type": "array", "items": {"$ref": "#/components/schemas/Tensor"}}
    output = {
        "type": "object",
        "required": ["name"],
        "properties": {"name": {"type": "string"}, "parameters": {"type": "object"}},
    }
    return {
        "summary": "Run a model on prepared images.",
        "operationId": "infer",
        "requestBody": {
            "required": True,
            "content": {
                JSON: {
                    "schema": {
                        "type": "object",
                        "required": ["inputs"],
                        "properties": {
                            "id": {"type": "string"},
                            "parameters": {"type": "object"},
                            "inputs": {"type": "array", "items": _input(), "minItems": 1, "maxItems": 1},
                            "outputs": {"type": "array", "items": output},
                        },
                    }
                }
            },
        },
        "responses": {
            "200": {
                "description": "The outputs; with the parameter binary_data_output as bytes after the JSON.",
                "content": {
                    JSON: {
                        "schema": {
                            "type": "object",
                            "required": ["model_name", "outputs"],
                            "properties": {
                                "model_name": {"type": "string"},
                                "model_version": {"type": "string"},
                                "id": {"type": "string"},
                                "outputs": tensors,
                            },
                        }
                    },
                    "application/octet-stream": {"schema": {"type": "string", "format": "binary"}},
                },
            },
            **_refusals(*REFUSALS),
        },
    }


def _get(summary: str, schema: dict[str, Any], *refusals: str, kind: str = JSON) -> dict[str, Any]:
    operation = {"description": summary, "content": {kind: {"schema": schema}}}
    return {"summary": summary, "responses": {"200": operation, **_refusals(*refusals)}}


def _refusals(*codes: str) -> dict[str, Any]:
    schema = {"schema": {"$ref": "#/components/schemas/Error"}}
    return {code: {"description": REFUSALS[code], "content": {JSON: schema}} for code in codes}


def _object(*names: str) -> dict[str, Any]:
    return {"type": "object", "required": list(names)}


def _name(names: Sequence[str]) -> dict[str, Any]:
    return {"name": "name", "in": "path", "required": True, "schema": {"type": "string", "enum": list(names)}}


def _query(name: str, schema: dict[str, Any], text: str) -> dict[str, Any]:
    return {"name": name, "in": "query", "required": False, "schema": schema, "description": text}


def _schema(option: Option) -> dict[str, Any]:
    if not option.metavar:
        return {"type": "string", "enum": ["0", "1"]}
    if option.read is whole:
        return {"type": "integer", "minimum": 1}
    return {"type": "number", "minimum": 0, "maximum": 1} if option.read is real else {"type": "string"}


def _error() -> dict[str, Any]:
    return {"type": "object", "required": ["error"], "properties": {"error": {"type": "string"}}}


def _tensor() -> dict[str, Any]:
    return {
        "type": "object",
        "required": ["name", "shape", "datatype"],
        "properties": {
            "name": {"type": "string"},
            "shape": {"type": "array", "items": {"type": "integer", "minimum": 0}},
            "datatype": {"type": "string", "enum": ["FP32", "INT64", "BOOL"]},
            "parameters": {"type": "object"},
            "data": {"type": "array"},
        },
    }


def _input() -> dict[str, Any]:
    side = {"type": "integer", "minimum": 1}
    shape = {"type": "array", "items": side, "minItems": 4, "maxItems": 4}
    return {
        "type": "object",
        "required": ["name", "shape", "datatype"],
        "properties": {
            "name": {"type": "string", "enum": [INPUT]},
            "shape": {**shape, "description": "[B, C, height, width]"},
            "datatype": {"type": "string", "enum": ["FP32"]},
            "parameters": {"type": "object", "properties": {"binary_data_size": {"type": "integer"}}},
            "data": {"type": "array"},
        },
    }


def _prediction() -> dict[str, Any]:
    number, text, whole_number = {"type": "number"}, {"type": "string"}, {"type": "integer"}
    runs = {
        "type": "object",
        "required": ["size", "counts"],
        "properties": {"size": {"type": "array", "items": whole_number}, "counts": text},
    }

    def rows(**properties: Any) -> dict[str, Any]:
        return {"type": "array", "items": {"type": "object", "properties": properties}}

    box = {
        "type": "array",
        "items": number,
        "minItems": 4,
        "maxItems": 4,
        "description": "x, y, width, height",
    }
    return {
        "type": "object",
        "required": ["model", "task", "height", "width"],
        "properties": {
            "model": text,
            "task": {"type": "string", "enum": ["classify", "detect", "segment"]},
            "height": whole_number,
            "width": whole_number,
            "top": rows(**{"index": whole_number, "class": text, "score": number}),
            "objects": rows(
                **{
                    "class": text,
                    "category_id": whole_number,
                    "bbox": box,
                    "score": number,
                    "segmentation": runs,
                    "mask_png": text,
                }
            ),
            "classes": rows(**{"index": whole_number, "class": text, "share": number, "segmentation": runs}),
            "label_map_png": text,
        },
    }
