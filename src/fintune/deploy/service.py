"""A classifier behind HTTP: texts of requests that arrive together are scored together."""

import asyncio
import errno
import json
import logging
import re
import socket
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from typing import Any, TypeVar
from weakref import WeakValueDictionary

import numpy as np
import uvicorn
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from fintune.data.inputs import Input
from fintune.deploy.batcher import Batcher, QueueFull
from fintune.deploy.classifier import Classifier
from fintune.deploy.connections import Connection
from fintune.deploy.http_guard import Guard, error_response, unsupported
from fintune.errors import UserError

BODY_SECONDS = 30  # that a client may take to send its request
LARGE = 2**14  # bytes of a body or an answer that take more than a millisecond to read or write
BOM = b"\xef\xbb\xbf"
STRING = re.compile(rb'"(?:[^"\\]++|\\.)*+"?', re.DOTALL)  # of JSON, also one that does not end
T = TypeVar("T")


class ClassifyRequest(BaseModel):
    """The body of POST /classify: one text, or several."""

    model_config = ConfigDict(extra="forbid", strict=True)
    text: str | None = None
    texts: list[str] | None = Field(None, fail_fast=True)

    @model_validator(mode="after")
    def _exactly_one(self):
        if (self.text is None) == (self.texts is None):
            raise ValueError('give {"text": "..."} or {"texts": ["...", ...]}')
        return self


class RowsRequest(ClassifyRequest):
    """The body where the run reads columns too: a text with them, or several."""

    model_config = ConfigDict(extra="allow")
    texts: list[dict[str, object]] | None = Field(None, fail_fast=True)

    @model_validator(mode="after")
    def _columns_in_their_row(self):
        if self.texts is not None and self.model_extra:
            raise ValueError(f"{next(iter(self.model_extra))!r} beside `texts`; put it into each of them")
        return self


class Refused(Exception):
    """What was sent is not what the service takes."""

    def __init__(self, status: int, message: str):
        super().__init__(message)
        self.status = status


class Metrics:
    """What GET /metrics shows, in a registry of its own."""

    def __init__(self):
        self.registry = CollectorRegistry()
        self.requests = Counter("fintune_requests", "Answered POST /classify", ["status"], registry=self.registry)
        self.texts = Counter("fintune_texts", "Texts labelled", registry=self.registry)
        self.seconds = Histogram("fintune_request_seconds", "From request to answer", registry=self.registry)
        sizes = [2**power for power in range(13)]
        self.batch = Histogram("fintune_batch_texts", "Texts scored together", buckets=sizes, registry=self.registry)
        self.waiting = Gauge("fintune_waiting_texts", "Texts waiting or being scored", registry=self.registry)


def listen(host: str, port: int) -> socket.socket:
    """A socket on which clients may wait already while the model loads.

    Raises:
        UserError: the address is taken, is not this machine's, or is no address.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family, backlog=2048)
    except (OSError, UnicodeError) as error:
        why = (getattr(error, "strerror", None) or "no address").partition(" (while")[0]
        busy = getattr(error, "errno", None) == errno.EADDRINUSE
        remedy = "give another --port, or end what listens there" if busy else "give another --host or --port"
        raise UserError(f"cannot listen on port {port} of {host!r}: {why}; {remedy}") from error


def serve(app: Starlette, listening: socket.socket, max_connections: int, graceful_timeout: int) -> None:
    """Answer requests until a signal comes.

    Args:
        max_connections: beyond them the one that was silent longest is closed, see `Connection`; where all wait for
            an answer, a request is answered with 503.
        graceful_timeout: seconds for the open requests after SIGTERM.
    """
    config = uvicorn.Config(
        app,
        http=Connection,
        ws="none",
        access_log=False,
        limit_concurrency=max_connections,
        timeout_graceful_shutdown=graceful_timeout,
    )
    host, port, *_ = listening.getsockname()
    log = logging.getLogger("uvicorn.error")
    # cancelled after that time, since its client does not read: no fault that needs a traceback
    log.addFilter(lambda record: not (record.exc_info and isinstance(record.exc_info[1], asyncio.CancelledError)))
    # uvicorn says it only of sockets of its own
    log.info("Uvicorn running on http://%s:%d (Press CTRL+C to quit)", f"[{host}]" if ":" in host else host, port)
    uvicorn.Server(config).run([listening])


def create_app(
    classifier: Classifier,
    threshold: float,
    most_waiting: int,
    max_body: int,
    host: str,
    allowed_hosts: Sequence[str] = (),
) -> Starlette:
    """The service as an ASGI application.

    POST /classify takes {"text": "..."} or {"texts": [...]}, of a run with columns {"text": "...", "ticker": "..."} or
    {"texts": [{...}, ...]}, and answers with label, confidence, probabilities by label, abstained, of a cascade the
    stage, and truncated (its end was not read), for several texts as {"results": [...]} in their order. Errors are
    {"error": "one line"}: 400 and 403 not meant for this service, see `Guard`, 408 a body that took too long, 413 too
    much for this service, 415 not JSON in UTF-8, 422 not what it takes, 429 too much right now, 503 it ends.
    GET /healthz (with the run's columns and its caveat, where it has them), GET /metrics (Prometheus).

    Args:
        threshold: confidence below which the model abstains.
        most_waiting: texts of a request, and of all of a client's requests that may wait at a time; see `Batcher`.
        max_body: bytes of a request.
        host: the address that it listens on.
        allowed_hosts: further names that it is called by.
    """
    metrics = Metrics()
    batcher = Batcher(classifier, most_waiting, metrics.batch.observe)
    aside = Aside()
    most_values = 2 * (most_waiting + 1) * (len(classifier.columns) + 1)  # names and strings of so many texts
    metrics.waiting.set_function(batcher.waiting.total)

    async def classify(request: Request) -> Response:
        started, status = time.perf_counter(), 500
        try:
            response = await answer(request)
            status = response.status_code
            return response
        finally:
            metrics.requests.labels(status).inc()
            metrics.seconds.observe(time.perf_counter() - started)

    async def answer(request: Request) -> Response:
        client = request.client.host
        try:
            if fault := unsupported(request.headers):
                return error_response(415, fault)
            content = await _body(request, max_body)
            texts, single = await aside(client, len(content), lambda: read(content))
            scores = await _while_connected(request, batcher(texts, client))
            metrics.texts.inc(len(texts))
            body = await aside(client, 32 * scores.size, lambda: written(scores, single))
            return Response(body, media_type="application/json")
        except Refused as error:
            return error_response(error.status, str(error))
        except QueueFull as full:
            return error_response(429, f"{full} texts of yours are waiting already; try again", {"Retry-After": "1"})
        except ClientDisconnect:
            return Response(status_code=499)  # nobody reads it; for the metrics
        except asyncio.CancelledError:
            return error_response(503, "the service ended before this request was answered", {"Connection": "close"})

    def read(content: bytes) -> tuple[list[Input], bool]:
        """The texts of a body, and whether it is a single one outside of a list."""
        if len(content) > LARGE and _holds_over(content, most_values):
            raise Refused(413, f"over {most_values:,} values in one request; send {most_waiting:,} texts at a time")
        try:
            kind = RowsRequest if classifier.columns else ClassifyRequest
            body = kind.model_validate_json(content.removeprefix(BOM))
        except ValidationError as error:
            first = error.errors(include_url=False, include_input=False, include_context=False)[0]
            raise Refused(422, ": ".join([*(str(part) for part in first["loc"]), first["msg"]])) from None
        texts = body.texts
        if texts is None:
            texts = [{"text": body.text, **body.model_extra} if classifier.columns else body.text]
        if len(texts) > most_waiting:
            raise Refused(413, f"{len(texts)} texts in one request, at most {most_waiting} fit; send them in parts")
        for row, text in enumerate(texts):
            if fault := classifier.fault(text):
                raise Refused(422, f"text {row}: {fault}; {classifier.wanted}")
        return texts, body.texts is None

    def written(scores: np.ndarray, single: bool) -> bytes:
        """The answer as JSON, row by row: in one piece it would stop all other threads for as long."""
        rows = [json.dumps(_result(row), ensure_ascii=False, allow_nan=False, separators=(",", ":")) for row in scores]
        return (rows[0] if single else f'{{"results":[{",".join(rows)}]}}').encode()

    def _result(row: np.ndarray) -> dict:
        scores, truncated, stage = row[:-2], bool(row[-2]), int(row[-1])
        confidence = float(scores.max())
        return {
            "label": classifier.names[scores.argmax()],
            "confidence": confidence,
            "probabilities": dict(zip(classifier.names, map(float, scores), strict=True)),
            "abstained": classifier.abstains(confidence, stage, threshold),
            **({"stage": classifier.stage(stage)} if classifier.stages else {}),
            "truncated": truncated,
        }

    async def healthz(request: Request) -> Response:
        state = {"status": "ok", "labels": classifier.names, "waiting_texts": batcher.waiting.total()}
        more = {"columns": classifier.columns, "caveat": classifier.caveat}
        return JSONResponse(state | {key: value for key, value in more.items() if value})

    async def show_metrics(request: Request) -> Response:
        return Response(generate_latest(metrics.registry), media_type=CONTENT_TYPE_LATEST)

    @asynccontextmanager
    async def scoring(app: Starlette) -> AsyncIterator[None]:
        task = asyncio.create_task(batcher.run())
        yield  # until the server has answered what it took
        task.cancel()
        batcher.close()

    def refused(path: str, status: int) -> None:
        if path == "/classify":
            metrics.requests.labels(status).inc()

    routes = [
        Route("/classify", classify, methods=["POST"]),
        Route("/healthz", healthz),
        Route("/metrics", show_metrics),
    ]
    guard = Middleware(Guard, host=host, allowed_hosts=allowed_hosts, refused=refused)
    handlers = {HTTPException: _refused, Exception: _failed}
    app = Starlette(routes=routes, lifespan=scoring, middleware=[guard], exception_handlers=handlers)
    app.router.redirect_slashes = False  # a redirect would repeat the Host it was asked by
    return app


class Aside:
    """Runs what takes long on a thread of its own, one thing of a client at a time, so that the others are served."""

    def __init__(self):
        self._thread = ThreadPoolExecutor(1, "aside")  # one: more would leave the event loop a smaller share
        self._of_client: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()

    async def __call__(self, client: str, size: int, work: Callable[[], T]) -> T:
        """
        Args:
            size: bytes that are read or written; up to `LARGE` the work is done at once.
        """
        if size <= LARGE:
            return work()
        lock = self._of_client.setdefault(client, asyncio.Lock())
        async with lock:
            return await asyncio.get_running_loop().run_in_executor(self._thread, work)


async def _body(request: Request, most: int) -> bytes:
    """The request's body; refused where it is larger, or too slow, without reading on."""
    content = bytearray()
    try:
        async with asyncio.timeout(BODY_SECONDS):
            async for chunk in request.stream():
                content += chunk
                if len(content) > most:
                    raise Refused(413, f"the request has over {most:,} bytes; send it in parts")
    except TimeoutError:
        raise Refused(408, f"the request's body took over {BODY_SECONDS} seconds") from None
    return bytes(content)


def _holds_over(content: bytes, most: int) -> bool:
    """Whether a body of JSON has more values: while Python builds half a million, it does nothing else for seconds."""
    bare, strings = STRING.subn(b"", content, most + 1)
    return strings > most or sum(map(bare.count, (b",", b"[", b"{"))) > most


async def _while_connected(request: Request, work: Coroutine[Any, Any, T]) -> T:
    """What the work gives.

    Raises:
        ClientDisconnect: the client went away first; the work is cancelled.
    """
    working, gone = asyncio.ensure_future(work), asyncio.ensure_future(request.receive())  # the body has been read
    try:
        await asyncio.wait((working, gone), return_when=asyncio.FIRST_COMPLETED)
        if not working.done():
            raise ClientDisconnect
        return working.result()
    finally:
        working.cancel()
        gone.cancel()


async def _refused(request: Request, error: HTTPException) -> Response:
    return error_response(error.status_code, f"{request.method} {request.url.path}: {error.detail}", error.headers)


async def _failed(request: Request, error: Exception) -> Response:
    return error_response(500, "the model failed on this request; the server's log says how")
