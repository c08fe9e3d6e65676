"""The routes of a server: requests are admitted, read, checked and run in the thread of their model.

A request passes in this order: the queue's limit, the body's limit, the header of the image, its pixels, the model.
Everything that is refused gets one line, {"error": "..."}.

One file: the routes share the order of those checks, and it is read in one place.
"""

import asyncio
import json
import math
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import asynccontextmanager
from importlib.metadata import version
from typing import Any, TypeVar

import torch
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import HTMLResponse, Response
from starlette.routing import Route

from tetravit.predictors.parts.predictions import Prepared
from tetravit.registry import suggestion
from tetravit.serve import images, pages, replies, tensors
from tetravit.serve.limits import Limits, Refused
from tetravit.serve.metrics import Metrics
from tetravit.serve.openapi import description
from tetravit.serve.served import Served

Result = TypeVar("Result")

EXPLAINED = ("class", "layer", "head")  # parameters with explain
EXPLANATIONS = 2  # at once: each holds its picture
READERS = 2  # threads that decode images and write pictures
OWN = ("model", "draw", "masks", "explain")  # parameters of /v1/predict beside those of the model


class Service:
    """Models behind HTTP. The first of `models` is the one that a request without a name gets."""

    def __init__(self, models: Sequence[Served], limits: Limits, metrics: Metrics | None = None) -> None:
        self.models = {served.name: served for served in models}
        self.limits, self.metrics = limits, metrics or Metrics()
        self.in_flight = self.accepted = 0
        self.draining = False
        self.explaining = asyncio.Semaphore(EXPLANATIONS)
        self.pool = ThreadPoolExecutor(READERS, thread_name_prefix="images")
        self.explorer, self.reference = pages.explorer(), pages.reference()
        self.openapi = replies.text_of(description(models, limits))

    @property
    def ready(self) -> bool:
        """Whether every model has run once and the server is not about to end."""
        return not self.draining and all(served.ready for served in self.models.values())

    # Life of the server

    @asynccontextmanager
    async def lifespan(self, app: Starlette) -> AsyncIterator[None]:
        for served in self.models.values():
            served.batcher.start()
            served.batcher.submit(served.warm_up())
        yield
        for served in self.models.values():
            served.batcher.close()
        for served in self.models.values():
            await asyncio.to_thread(served.batcher.join)
        self.pool.shutdown()

    # Pages

    async def page(self, request: Request) -> Response:
        return HTMLResponse(self.explorer.text, headers=self.explorer.headers)

    async def docs(self, request: Request) -> Response:
        return HTMLResponse(self.reference.text, headers=self.reference.headers)

    async def schema(self, request: Request) -> Response:
        return Response(self.openapi, media_type="application/json")

    # Health

    async def live(self, request: Request) -> Response:
        return reply({"live": True})

    async def is_ready(self, request: Request) -> Response:
        if self.draining:
            raise Refused(503, "The server is about to end.", {"Retry-After": "1"})
        if not self.ready:
            raise Refused(503, "The models are warming up.", {"Retry-After": "1"})
        return reply({"ready": True})

    async def measured(self, request: Request) -> Response:
        waiting: dict[Any, float] = {
            (("model", name),): served.batcher.waiting for name, served in self.models.items()
        }
        gauges: dict[str, dict[Any, float]] = {
            "tetravit_queue": waiting,
            "tetravit_requests_in_flight": {(): self.in_flight},
            "tetravit_ready": {(): int(self.ready)},
        }
        return Response(self.metrics.text(gauges), media_type="text/plain; version=0.0.4")

    # Predictions

    async def listed(self, request: Request) -> Response:
        limits = {
            "body_bytes": self.limits.body,
            "pixels": self.limits.pixels,
            "deadline_s": self.limits.deadline_s,
        }
        models = [served.facts() for served in self.models.values()]
        return reply({"models": models, "limits": limits, "version": version("tetravit")})

    async def predict(self, request: Request) -> Response:
        given = request.query_params.multi_items()
        names = [name for name, _ in given]
        for name in names:
            if names.count(name) > 1:
                raise Refused(400, f"{name} is given twice.")
        own = {name: value for name, value in given if name in OWN}
        served = self.named(own.get("model"))
        masks = own.get("masks", "rle")
        if masks not in replies.MASKS:
            raise Refused(400, f"masks takes one of {', '.join(replies.MASKS)}; got {masks!r}.")
        draw = own.get("draw", "0")
        if draw not in ("0", "1"):
            raise Refused(400, f"draw takes 1 or 0; got {draw!r}.")
        kind = request.headers.get("content-type", "")
        if kind.startswith("multipart/"):
            raise Refused(415, "The body is the image itself, not a form: curl --data-binary @FILE.")
        if "explain" in own:
            others = {name: value for name, value in given if name not in OWN}
            return await self.explain(request, served, own["explain"], others, draw == "1")
        async with self.admitted() as end:
            options = served.read_options((name, value) for name, value in given if name not in OWN)
            body = await self.body(request, end)
            async with self.deadline(end):
                with served.batcher.coming():
                    image = await self.aside(self.prepare, served, body)
                    job = served.batcher.submit(served.predict(image, options))
                prediction = await self.result(request, job)
                if draw == "1":
                    return Response(
                        await self.aside(self.draw, served, prediction, body), media_type="image/png"
                    )
                return await self.aside(self.describe, served, prediction, image.size, masks)

    async def explain(
        self, request: Request, served: Served, method: str, given: dict[str, str], whole: bool
    ) -> Response:
        for name in given:
            if name not in EXPLAINED:
                near = suggestion(name, EXPLAINED)
                raise Refused(400, f"explain has no option {name!r}.{near}")
        head = given.get("head")
        if head is not None and not (head.isascii() and head.isdecimal() and len(head) < 6):
            raise Refused(400, f"head takes a whole number; got {head!r}.")
        settings = {"class_": given.get("class"), "layer": given.get("layer"), "head": head and int(head)}
        async with self.admitted() as end:
            body = await self.body(request, end)
            async with self.deadline(end), self.explaining:
                pixels = await self.aside(images.pixels_of, body, self.limits, served.channels)
                await self.aside(images.prepared, pixels, served.model.input, self.limits)
                job = served.batcher.submit(served.explain(pixels, method, settings))
                explanation = await self.result(request, job)
                return Response(
                    await self.aside(replies.explained, explanation, whole), media_type="image/png"
                )

    def prepare(self, served: Served, body: bytes) -> Prepared:
        """The image of a body as the model takes it."""
        pixels = images.pixels_of(body, self.limits, served.channels)
        return images.prepared(pixels, served.model.input, self.limits)

    def draw(self, served: Served, prediction: Any, body: bytes) -> bytes:
        return replies.drawn(prediction, images.pixels_of(body, self.limits))

    def describe(self, served: Served, prediction: Any, size: tuple[int, int], masks: str) -> Response:
        facts = replies.described(prediction, size, masks)
        return reply({"model": served.name, "task": served.kind, **facts})

    # The Open Inference Protocol

    async def server(self, request: Request) -> Response:
        return reply(
            {"name": "tetravit", "version": version("tetravit"), "extensions": ["binary_tensor_data"]}
        )

    async def model(self, request: Request) -> Response:
        served = self.named(request.path_params["name"])
        shape = (served.channels, served.model.num_classes, served.output_names, served.kind)
        return reply(tensors.metadata(served.name, *shape))

    async def model_ready(self, request: Request) -> Response:
        served = self.named(request.path_params["name"])
        if not served.ready:
            raise Refused(503, "The model is warming up.", {"Retry-After": "1"})
        return reply({"name": served.name, "ready": True})

    async def infer(self, request: Request) -> Response:
        served = self.named(request.path_params["name"])
        async with self.admitted() as end:
            body = await self.body(request, end)
            length = request.headers.get(tensors.BINARY_HEADER)
            async with self.deadline(end):
                call = await self.aside(self.read_tensors, served, body, length)
                jobs = [
                    served.batcher.submit(served.tensors(torch.from_numpy(image))) for image in call.images
                ]
                try:
                    parts = [await self.result(request, job) for job in jobs]
                finally:
                    for job in jobs:
                        job.cancel()
                content, headers = await self.aside(tensors.write, served.name, call, tensors.joined(parts))
                return Response(content, headers=headers)

    def read_tensors(self, served: Served, body: bytes, length: str | None) -> tensors.Call:
        call = tensors.read(body, length, served.output_names)
        served.check_tensor(call.images.shape)
        return call

    # What requests share

    def named(self, name: str | None) -> Served:
        """Raises: Refused (404) if no model has that name."""
        if name is None:
            return next(iter(self.models.values()))
        if name not in self.models:
            raise Refused(404, f"Unknown model {name!r}.{suggestion(name, self.models)}")
        return self.models[name]

    @asynccontextmanager
    async def admitted(self) -> AsyncIterator[float]:
        """A place among the requests that are worked on, and the time of the loop at which it must be done.

        Raises:
            Refused: 503 while the models warm up, or if there are as many requests as the limit.
        """
        if not all(served.ready for served in self.models.values()):
            raise Refused(503, "The models are warming up.", {"Retry-After": "1"})
        if self.in_flight >= self.limits.queue:
            seconds = min(60, max(1, math.ceil(self.in_flight * self.metrics.image_s())))
            raise Refused(
                503,
                f"The server has {self.in_flight} requests to do, its limit (--queue).",
                {"Retry-After": str(seconds)},
            )
        self.in_flight += 1
        self.accepted += 1
        try:
            yield asyncio.get_running_loop().time() + self.limits.deadline_s
        finally:
            self.in_flight -= 1

    @asynccontextmanager
    async def deadline(self, end: float) -> AsyncIterator[None]:
        """Raises: Refused (504) at the time `end`."""
        try:
            async with asyncio.timeout_at(end):
                yield
        except TimeoutError:
            raise Refused(504, f"No result within {self.limits.deadline_s:g} s (--deadline-s).") from None

    async def body(self, request: Request, end: float) -> bytes:
        """The body of a request.

        Raises:
            Refused: 408 for one that is not there at the time `end`, 413 for one that is larger than the limit,
                415 for one that is packed.
        """
        packed = request.headers.get("content-encoding", "identity")
        if packed != "identity":
            raise Refused(415, f"Content-Encoding {packed!r} is not supported; send the file as it is.")
        length = request.headers.get("content-length", "0")
        if length.isdecimal() and int(length) > self.limits.body:
            raise self.too_large()
        parts, total = [], 0
        try:
            async with asyncio.timeout_at(end):
                async for part in request.stream():
                    total += len(part)
                    if total > self.limits.body:
                        raise self.too_large()
                    parts.append(part)
        except TimeoutError:
            text = f"The body did not arrive within {self.limits.deadline_s:g} s (--deadline-s)."
            raise Refused(408, text, {"Connection": "close"}) from None
        return b"".join(parts)

    def too_large(self) -> Refused:
        return Refused(413, f"The body has more than {self.limits.body_mib:g} MiB (--max-body-mib).")

    async def aside(self, function: Callable[..., Result], *arguments: Any) -> Result:
        """Call a function in a thread for images."""
        return await asyncio.get_running_loop().run_in_executor(self.pool, function, *arguments)

    async def result(self, request: Request, future: "Future[Any]") -> Any:
        """What a job gives; a job whose client has left is not run.

        Raises:
            ClientDisconnect: if the client leaves before.
            Refused: 422 for what the model does not take.
        """
        waiting = asyncio.wrap_future(future)
        gone = asyncio.ensure_future(request.receive())  # after the body nothing else is received
        try:
            await asyncio.wait((waiting, gone), return_when=asyncio.FIRST_COMPLETED)
            if not waiting.done():
                raise ClientDisconnect
            return waiting.result()
        except ValueError as error:
            raise Refused(422, " ".join(str(error).split())) from None
        finally:
            waiting.cancel()
            gone.cancel()


def reply(facts: Any) -> Response:
    """Plain data as a response in JSON."""
    return Response(replies.text_of(facts), media_type="application/json")


async def refused(request: Request, error: Exception) -> Response:
    """One line for whatever is refused."""
    if isinstance(error, Refused):
        status, text, headers = error.status, error.text, dict(error.headers)
    elif isinstance(error, HTTPException):
        status, headers = error.status_code, dict(error.headers or {})
        text = {
            404: f"There is no {request.url.path!r}; the routes are in /openapi.json.",
            405: f"{request.url.path} does not take {request.method}.",
        }.get(status, str(error.detail))
    else:
        status, text, headers = 500, "The server failed; see its log.", {}
    body = json.dumps({"error": text}).encode()
    return Response(body, status, headers, media_type="application/json")


async def gone(request: Request, error: Exception) -> Response:
    """The client has disconnected: the response is discarded."""
    return Response(status_code=499)


class Counted:
    """Middleware: counts requests and their time, adds headers, ends connections while the server drains."""

    def __init__(self, app: Any, service: Service) -> None:
        self.app, self.service = app, service

    async def __call__(
        self,
        scope: dict[str, Any],
        receive: Callable[[], Awaitable[Any]],
        send: Callable[[Any], Awaitable[None]],
    ) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        start, status = time.monotonic(), 500

        async def count(message: dict[str, Any]) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"] += [
                    (b"x-content-type-options", b"nosniff"),
                    (b"referrer-policy", b"no-referrer"),
                ]
                if self.service.draining:
                    message["headers"].append((b"connection", b"close"))
            await send(message)

        try:
            await self.app(scope, receive, count)
        finally:
            self.service.metrics.request(route_of(scope["path"]), status, time.monotonic() - start)


def route_of(path: str) -> str:
    """A path as the metrics name it: without names of models, and few whatever clients send."""
    parts = path.split("/")
    if path.startswith("/v2/models/") and len(parts) in (4, 5):
        end = parts[4] if len(parts) == 5 else ""
        return "/v2/models/{name}" + (f"/{end}" if end in ("infer", "ready") else "")
    return path if path in PATHS else "other"


PATHS = (
    *(
        "/",
        "/docs",
        "/openapi.json",
        "/metrics",
        "/health/live",
        "/health/ready",
        "/v1/models",
        "/v1/predict",
    ),
    *("/v2", "/v2/health/live", "/v2/health/ready"),
)


def application(models: Sequence[Served], limits: Limits, metrics: Metrics | None = None) -> Any:
    """The ASGI application; its attribute `service` is the state."""
    service = Service(models, limits, metrics)
    routes = [
        Route("/", service.page),
        Route("/docs", service.docs),
        Route("/openapi.json", service.schema),
        Route("/metrics", service.measured),
        Route("/health/live", service.live),
        Route("/health/ready", service.is_ready),
        Route("/v1/models", service.listed),
        Route("/v1/predict", service.predict, methods=["POST"]),
        Route("/v2", service.server),
        Route("/v2/health/live", service.live),
        Route("/v2/health/ready", service.is_ready),
        Route("/v2/models/{name}", service.model),
        Route("/v2/models/{name}/ready", service.model_ready),
        Route("/v2/models/{name}/infer", service.infer, methods=["POST"]),
    ]
    inner = Starlette(
        routes=routes,
        lifespan=service.lifespan,
        exception_handlers={
            Refused: refused,
            HTTPException: refused,
            ClientDisconnect: gone,
            Exception: refused,
        },
    )
    return Counted(inner, service)
