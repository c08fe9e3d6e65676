"""What keeps a server up: limits, deadlines, the queue, its state; and batches that change no bit."""

import asyncio
import threading
import time
from concurrent.futures import Future, ThreadPoolExecutor
from typing import ClassVar

import pytest
import torch
from starlette.requests import ClientDisconnect
from tests.serve.conftest import classifier, client_of, file_of, picture

from tetravit.predictors import stream
from tetravit.predictors.parts.predictions import Prepared
from tetravit.serve.app import route_of
from tetravit.serve.batcher import Batcher
from tetravit.serve.limits import Limits, Refused
from tetravit.serve.metrics import Metrics
from tetravit.serve.served import Served, name_of, names_of


class Gate:
    """Holds the thread of a model until it is opened."""

    def __init__(self, served):
        self.open, self.entered = threading.Event(), threading.Event()
        self.calls = []
        make = served.predict

        def wrapped(image, options):
            job = make(image, options)
            run = job.run

            def held(items):
                self.entered.set()
                self.open.wait(10)
                self.calls.append(len(items))
                return run(items)

            job.run = held
            return job

        served.predict = wrapped


def test_a_full_queue_is_503_with_a_time_to_come_back(models):
    with client_of({"digits": models["digits"]}, Limits(queue=2)) as client, ThreadPoolExecutor(2) as pool:
        gate = Gate(client.service.models["digits"])
        body = file_of(picture())
        held = [pool.submit(client.post, "/v1/predict", content=body) for _ in range(2)]
        gate.entered.wait(5)
        while client.service.in_flight < 2:
            time.sleep(0.005)
        refused = client.post("/v1/predict", content=body)
        assert refused.status_code == 503
        assert refused.json() == {"error": "The server has 2 requests to do, its limit (--queue)."}
        assert refused.headers["retry-after"] == "1"
        assert "tetravit_requests_in_flight 2" in client.get("/metrics").text
        gate.open.set()
        assert [f.result(10).status_code for f in held] == [200, 200]
        assert client.service.in_flight == 0


def test_a_deadline_is_504_and_what_waits_is_not_run(models):
    limits = Limits(deadline_s=0.3)
    with client_of({"digits": models["digits"]}, limits) as client, ThreadPoolExecutor(2) as pool:
        gate = Gate(client.service.models["digits"])
        body = file_of(picture())
        held = [pool.submit(client.post, "/v1/predict", content=body) for _ in range(2)]
        answers = [f.result(10) for f in held]
        assert {(a.status_code, a.json()["error"]) for a in answers} == {
            (504, "No result within 0.3 s (--deadline-s).")
        }
        gate.open.set()
        assert client.post("/v1/predict", content=body).status_code == 200
        assert gate.calls == [1, 1]  # the second of those that were held never ran


def test_a_client_that_has_left_costs_no_call(client):
    """Its job is cancelled before it runs."""

    class Request:
        async def receive(self):
            return {"type": "http.disconnect"}

    job = Future()
    with pytest.raises(ClientDisconnect):
        asyncio.run(client.service.result(Request(), job))
    assert job.cancelled()


def test_a_body_that_does_not_arrive_is_408(models):
    with client_of({"digits": models["digits"]}, Limits(deadline_s=0.2)) as client:

        class Request:
            headers: ClassVar = {}

            async def stream(self):
                yield b"x"
                await asyncio.sleep(10)

        async def ask():
            await client.service.body(Request(), asyncio.get_running_loop().time() + 0.2)

        with pytest.raises(Refused) as caught:
            asyncio.run(ask())
    assert (caught.value.status, str(caught.value)) == (
        408,
        "The body did not arrive within 0.2 s (--deadline-s).",
    )


def test_states_of_a_server(models):
    with client_of({"digits": models["digits"]}) as client:
        served = client.service.models["digits"]
        assert client.get("/health/ready").json() == {"ready": True}
        served.ready = False
        for path, verb in (("/health/ready", "GET"), ("/v1/predict", "POST")):
            got = client.request(verb, path, content=b"x" if verb == "POST" else None)
            assert (got.status_code, got.json()) == (503, {"error": "The models are warming up."})
            assert got.headers["retry-after"] == "1"
        got = client.get("/v2/models/digits/ready")
        assert (got.status_code, got.json()) == (503, {"error": "The model is warming up."})
        assert client.get("/health/live").status_code == 200
        served.ready, client.service.draining = True, True
        got = client.get("/health/ready")
        assert (got.status_code, got.json()) == (503, {"error": "The server is about to end."})
        got = client.post("/v1/predict", content=file_of(picture()))
        assert (got.status_code, got.headers["connection"]) == (200, "close")  # it still takes requests


def test_a_fault_is_one_line_and_the_server_goes_on(models):
    with client_of({"digits": models["digits"]}) as client:
        served, body = client.service.models["digits"], file_of(picture())
        make = served.predict
        served.predict = lambda image, options: 1 / 0
        got = client.post("/v1/predict", content=body)
        assert (got.status_code, got.json()) == (500, {"error": "The server failed; see its log."})
        served.predict = make
        assert client.post("/v1/predict", content=body).status_code == 200
        assert client.service.in_flight == 0


def test_unknown_routes_and_verbs(client):
    for verb, path, status, text in [
        ("GET", "/v1/predict", 405, "/v1/predict does not take GET."),
        ("GET", "/nothing", 404, "There is no '/nothing'; the routes are in /openapi.json."),
        ("GET", "/v2/models/none", 404, "Unknown model 'none'. Known: digits, scenes, shapes."),
        ("GET", "/../../etc/passwd", 404, "There is no '/etc/passwd'; the routes are in /openapi.json."),
    ]:
        got = client.request(verb, path)
        assert (got.status_code, got.json()) == (status, {"error": text})


def test_metrics_name_few_routes(client):
    client.get("/v2/models/none")
    client.get("/a/b")
    lines = client.get("/metrics").text.splitlines()
    assert 'tetravit_requests_total{route="/v2/models/{name}",status="404"}' in " ".join(lines)
    assert 'route="other"' in " ".join(lines)
    assert "tetravit_ready 1" in lines
    assert route_of("/v2/models/x/infer") == "/v2/models/{name}/infer"
    assert route_of("/v2/models/x/secret") == "/v2/models/{name}"


def test_metrics_text():
    metrics = Metrics()
    metrics.request("/", 200, 0.2)
    metrics.call('a"b', 3, 0.6)
    assert metrics.image_s() == pytest.approx(0.2)
    text = metrics.text({"tetravit_queue": {(("model", "a"),): 2}})
    assert 'tetravit_requests_total{route="/",status="200"} 1\n' in text
    assert 'tetravit_request_seconds_bucket{route="/",le="0.1"} 0\n' in text
    assert 'tetravit_request_seconds_bucket{route="/",le="0.25"} 1\n' in text
    assert 'tetravit_call_images_sum{model="a\\"b"} 3\n' in text
    assert 'tetravit_queue{model="a"} 2\n' in text


@pytest.mark.parametrize(
    ("given", "text"),
    [
        ({"queue": 0}, "queue is 1 or more; got 0."),
        ({"max_batch": 0}, "max_batch is 1 or more; got 0."),
        ({"deadline_s": 0}, "deadline_s is a number above 0; got 0."),
        ({"body_mib": float("nan")}, "body_mib is a number above 0; got nan."),
        ({"wait_ms": 2000}, "wait_ms is 0 to 1000 milliseconds; got 2000."),
    ],
)
def test_limits_out_of_range(given, text):
    with pytest.raises(ValueError) as caught:
        Limits(**given)
    assert str(caught.value) == text


class Rows(torch.nn.Module):
    """A model in whose products the rows of a batch never meet: batches give the bits of single images."""

    def __init__(self, model):
        super().__init__()
        self.model = model
        self.sizes = []

    def forward(self, images):
        self.sizes.append(len(images))
        return torch.cat([self.model(x[None]) for x in images])


@pytest.mark.parametrize("same", [True, False])
def test_batches_only_where_they_give_the_bits_of_single_images(same):
    model = classifier().eval()
    inner = model.forward
    rows = Rows(inner)
    shift = iter(range(10**6))
    model.forward = rows.forward if same else lambda x: inner(x) + 0.001 * len(x) * (next(shift) >= 0)
    served = Served("digits", model, Batcher("digits", 0.5), Limits(max_batch=4), device="cpu")
    served.batcher.start()
    served.batcher.submit(served.warm_up()).result(20)
    assert served.batches is same
    rows.sizes.clear()
    jobs = [served.predict(_prepared(model, seed), {}) for seed in range(4)]
    results = jobs[0].run([job.item for job in jobs])
    assert all(job.most == (4 if same else 1) for job in jobs)
    for job, result in zip(jobs, results, strict=True):
        model.forward = inner if same else model.forward
        assert result.guesses == predict_one(model, job.item)
    served.batcher.close()


def _prepared(model, seed):
    image = picture(seed=seed)
    return Prepared("image", model.preprocess(image), (image.height, image.width))


def predict_one(model, prepared):
    (found,) = stream(model, [prepared], batch_size=1)
    return found.guesses


def test_without_the_promise_batches_are_one_call(models):
    served = Served(
        "digits", models["digits"], Batcher("d", 0), Limits(max_batch=4), device="cpu", exact=False
    )
    jobs = [served.predict(_prepared(served.model, seed), {}) for seed in range(4)]
    assert jobs[0].most == 4
    found = jobs[0].run([job.item for job in jobs])
    for job, result in zip(jobs, found, strict=True):
        expected = predict_one(served.model, job.item)
        assert [g.score for g in result.guesses] == pytest.approx([g.score for g in expected], abs=1e-5)


def test_names(weights, tmp_path):
    run = tmp_path / "birds"
    run.mkdir()
    (run / "best.safetensors").write_bytes(b"")
    assert name_of(str(run / "best.safetensors")) == name_of(str(run)) == "birds"
    assert name_of(str(weights["digits"])) == "digits"
    assert name_of("xcit_nano_12_p16.in1k") == "xcit_nano_12_p16.in1k"
    assert names_of(["hf:owner/some name", "a/x", "b/x"]) == ["some-name", "x", "x-2"]
