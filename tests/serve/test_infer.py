"""The Open Inference Protocol: the outputs of the model to the bit, as JSON and as bytes."""

import json

import numpy as np
import pytest
import torch
from tests.serve.conftest import client_of

from tetravit.serve.limits import Limits


def tensor(images, **extra):
    shape, data = list(images.shape), images.flatten().tolist()
    return {"name": "images", "shape": shape, "datatype": "FP32", "data": data, **extra}


def infer(client, request, name="digits"):
    return client.post(f"/v2/models/{name}/infer", json=request)


def images(count=1, side=32, seed=0):
    return torch.randn(count, 3, side, side, generator=torch.Generator().manual_seed(seed))


def outputs_of(answer):
    types = {"FP32": np.float32, "INT64": np.int64, "BOOL": bool}
    return {
        row["name"]: np.array(row["data"], types[row["datatype"]]).reshape(row["shape"])
        for row in answer["outputs"]
    }


def test_the_server_and_its_models(client):
    assert client.get("/v2").json()["extensions"] == ["binary_tensor_data"]
    assert client.get("/v2/health/live").json() == {"live": True}
    assert client.get("/v2/health/ready").json() == {"ready": True}
    assert client.get("/v2/models/digits/ready").json() == {"name": "digits", "ready": True}
    assert client.get("/v2/models/digits").json() == {
        "name": "digits",
        "versions": ["1"],
        "platform": "pytorch",
        "inputs": [{"name": "images", "datatype": "FP32", "shape": [-1, 3, -1, -1]}],
        "outputs": [{"name": "logits", "datatype": "FP32", "shape": [-1, 10]}],
    }
    names = [row["name"] for row in client.get("/v2/models/shapes").json()["outputs"]]
    assert names == ["boxes", "scores", "labels", "valid", "masks"]
    (logits,) = client.get("/v2/models/scenes").json()["outputs"]
    assert logits["shape"] == [-1, 9, -1, -1]


@pytest.mark.parametrize(("name", "side"), [("digits", 32), ("digits", 41), ("scenes", 64)])
def test_logits_are_those_of_single_images_to_the_bit(client, models, name, side):
    batch = images(3, side)
    got = infer(client, {"id": "7", "inputs": [tensor(batch)]}, name).json()
    assert (got["id"], got["model_name"], got["model_version"]) == ("7", name, "1")
    with torch.inference_mode():
        single = torch.cat([models[name](x[None]) for x in batch])
    assert np.array_equal(outputs_of(got)["logits"], single.numpy())


def test_detections(client, models):
    batch = images(2, 96)
    got = outputs_of(infer(client, {"inputs": [tensor(batch)]}, "shapes").json())
    with torch.inference_mode():
        for i, x in enumerate(batch):
            expected = models["shapes"](x[None], torch.tensor([[96, 96]]))
            count = int(expected["valid"].sum())
            assert int(got["valid"][i].sum()) == count > 0
            for name in ("boxes", "scores", "labels", "masks"):
                assert np.array_equal(got[name][i][:count], expected[name][0][:count].numpy()), name


def test_bytes_in_and_out(client, models):
    batch = images(2)
    entry = {"name": "images", "shape": [2, 3, 32, 32], "datatype": "FP32"}
    data = batch.numpy().tobytes()
    entry["parameters"] = {"binary_data_size": len(data)}
    head = json.dumps({"inputs": [entry], "parameters": {"binary_data_output": True}}).encode()
    headers = {"Inference-Header-Content-Length": str(len(head))}
    got = client.post("/v2/models/digits/infer", content=head + data, headers=headers)
    length = int(got.headers["inference-header-content-length"])
    (row,) = json.loads(got.content[:length])["outputs"]
    assert row["parameters"] == {"binary_data_size": len(got.content) - length}
    logits = np.frombuffer(got.content[length:], "<f4").reshape(row["shape"])
    with torch.inference_mode():
        assert np.array_equal(logits, torch.cat([models["digits"](x[None]) for x in batch]).numpy())


def test_the_outputs_that_are_named(client):
    request = {"inputs": [tensor(images(1, 96))], "outputs": [{"name": "scores"}, {"name": "labels"}]}
    got = infer(client, request, "shapes").json()
    assert [row["name"] for row in got["outputs"]] == ["scores", "labels"]


ONE = images()


@pytest.mark.parametrize(
    ("request_", "status", "text"),
    [
        ([1], 400, "The body is a JSON object with inputs."),
        ({}, 400, "inputs holds one tensor, images."),
        ({"id": 3, "inputs": [tensor(ONE)]}, 400, "id is text."),
        ({"inputs": [tensor(ONE, name="pixels")]}, 400, "inputs holds one tensor, images; got 'pixels'."),
        ({"inputs": [tensor(ONE, datatype="UINT8")]}, 400, "images has the datatype FP32; got 'UINT8'."),
        (
            {"inputs": [tensor(ONE, shape=[3, 32, 32])]},
            400,
            "images has a shape of four numbers, [B, C, height, width]; got [3, 32, 32].",
        ),
        (
            {"inputs": [tensor(ONE, shape=[1, 3, 32, 31])]},
            400,
            "images of shape [1, 3, 32, 31] has 2976 numbers; got 3072.",
        ),
        (
            {"inputs": [tensor(ONE, data=["a"])]},
            400,
            "data is a list of numbers, or lists of equal lengths.",
        ),
        (
            {"inputs": [tensor(ONE, data=[[1], [1, 2]])]},
            400,
            "data is a list of numbers, or lists of equal lengths.",
        ),
        (
            {"inputs": [tensor(ONE, data=[1e39] * 3072)]},
            400,
            "images holds numbers that are not finite.",
        ),
        (
            {"inputs": [tensor(images(1, 31))]},
            400,
            "images takes the shape [B, 3, height, width], sides from 32 pixels up; got [1, 3, 31, 31].",
        ),
        ({"inputs": [tensor(images(9))]}, 413, "A request holds up to 8 images (--max-batch); got 9."),
        (
            {"inputs": [tensor(ONE)], "outputs": [{"name": "boxes"}]},
            400,
            "The outputs are logits; got 'boxes'.",
        ),
        ({"inputs": [tensor(ONE)], "parameters": 1}, 400, "parameters is an object."),
    ],
)
def test_mistakes(client, request_, status, text):
    got = infer(client, request_)
    assert (got.status_code, got.json()) == (status, {"error": text})


def test_bodies_that_are_not_json(client):
    for body, headers, text in [
        (b"{", {}, "The body is not JSON."),
        (b"[" * 200_000, {}, "The body is not JSON."),
        (
            b"{}",
            {"Inference-Header-Content-Length": "3"},
            "Inference-Header-Content-Length is 1 to 2 bytes; got '3'.",
        ),
        (
            b"{}",
            {"Inference-Header-Content-Length": "-1"},
            "Inference-Header-Content-Length is 1 to 2 bytes; got '-1'.",
        ),
    ]:
        got = client.post("/v2/models/digits/infer", content=body, headers=headers)
        assert (got.status_code, got.json()) == (400, {"error": text})


def test_an_output_that_is_not_finite_is_refused_in_json(models):
    with client_of({"digits": models["digits"]}, Limits()) as client:
        job = client.service.models["digits"].tensors
        client.service.models["digits"].tensors = lambda image: _with_nan(job(image))
        got = infer(client, {"inputs": [tensor(ONE)]})
    assert (got.status_code, got.json()) == (
        422,
        {"error": "The outputs of the model are not finite numbers."},
    )


def _with_nan(job):
    run = job.run
    job.run = lambda items: [{"logits": row["logits"] * np.nan} for row in run(items)]
    return job
