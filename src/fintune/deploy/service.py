"""A classifier behind HTTP: texts of requests that arrive together are scored together."""

import asyncio
import time
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager

import numpy as np
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from pydantic import BaseModel, ConfigDict, ValidationError, model_validator
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from fintune.data.inputs import Input, key_of
from fintune.deploy.classifier import Classifier

BODY_SECONDS = 30  # that a client may take to send its request, so that a slow one cannot hold up a shutdown
AT_ONCE = 512  # texts scored together: more raise no throughput, only the wait for the others' answers


class ClassifyRequest(BaseModel):
    """The body of POST /classify: one text, or several."""

    model_config = ConfigDict(extra="forbid", strict=True)
    text: str | None = None
    texts: list[str] | None = None

    @model_validator(mode="after")
    def _exactly_one(self):
        if (self.text is None) == (self.texts is None):
            raise ValueError('give {"text": "..."} or {"texts": ["...", ...]}')
        return self


class RowsRequest(ClassifyRequest):
    """The body where the run reads columns too: a text with them, or several."""

    model_config = ConfigDict(extra="allow")
    texts: list[dict[str, object]] | None = None

    @model_validator(mode="after")
    def _columns_in_their_row(self):
        if self.texts is not None and self.model_extra:
            raise ValueError(f"{next(iter(self.model_extra))!r} beside `texts`; put it into each of them")
        return self


class QueueFull(Exception):
    """More texts are waiting than the queue takes."""


class Batcher:
    """Scores the texts of many requests in order of arrival, one call of the classifier at a time.

    While a call runs, requests gather, and the next call takes them all: a single client never waits for others.
    """

    def __init__(self, classifier: Classifier, most_waiting: int, metrics: "Metrics"):
        """
        Args:
            most_waiting: texts that may wait or be scored at a time.
        """
        self.classifier, self.most_waiting, self.metrics = classifier, most_waiting, metrics
        self.waiting = 0
        self._queue: asyncio.Queue[tuple[list[Input], asyncio.Future]] = asyncio.Queue()
        self._thread = ThreadPoolExecutor(1, "scoring")  # one: the classifier is not made for two

    async def __call__(self, texts: list[Input]) -> np.ndarray:
        """(texts, labels + 1): calibrated probabilities, and 1 where the end of a text was not read.

        Raises:
            QueueFull: there is no room for them now.
        """
        if self.waiting + len(texts) > self.most_waiting:
            raise QueueFull
        answer = asyncio.get_running_loop().create_future()
        self.waiting += len(texts)
        self._queue.put_nowait((texts, answer))
        return await answer

    async def run(self) -> None:
        """Score what comes, until cancelled."""
        while True:
            requests = [await self._queue.get()]
            while not self._queue.empty() and sum(len(texts) for texts, _ in requests) < AT_ONCE:
                requests.append(self._queue.get_nowait())
            await self._score(requests)
            self.waiting -= sum(len(texts) for texts, _ in requests)

    async def _score(self, requests: list[tuple[list[Input], asyncio.Future]]) -> None:
        texts = [text for texts, _ in requests for text in texts]
        different = {key_of(text): text for text in texts}  # each once
        rows = {key: row for row, key in enumerate(different)}
        self.metrics.batch.observe(len(texts))
        try:
            score = self._probabilities_and_cut
            scores = await asyncio.get_running_loop().run_in_executor(self._thread, score, list(different.values()))
        except Exception as error:
            if len(requests) == 1:  # the server logs it, and goes on
                requests[0][1].done() or requests[0][1].set_exception(error)
                return
            for one in requests:  # one of them may be at fault, the others are not
                await self._score([one])
        else:
            for texts_of_one, answer in requests:
                answer.done() or answer.set_result(scores[[rows[key_of(text)] for text in texts_of_one]])

    def _probabilities_and_cut(self, texts: list[Input]) -> np.ndarray:
        """(texts, labels + 1): the probabilities of each, and 1 where its end was not read."""
        return np.column_stack([self.classifier(texts)[1], self.classifier.truncated(texts)])


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


def create_app(classifier: Classifier, threshold: float, most_waiting: int, max_body: int) -> Starlette:
    """The service as an ASGI application.

    POST /classify takes {"text": "..."} or {"texts": [...]}, of a run with columns {"text": "...", "ticker": "..."} or
    {"texts": [{...}, ...]}, and answers with label, confidence, probabilities by label, abstained and truncated (its
    end was not read), for several texts as {"results": [...]} in their order. Errors are {"error": "one line"}: 408 a
    body that took too long, 413 too much for this service, 422 not what it takes, 429 too much right now.
    GET /healthz (with the run's columns and its caveat, where it has them), GET /metrics (Prometheus).

    Args:
        threshold: confidence below which the model abstains.
        most_waiting: texts that may wait or be scored at a time.
        max_body: bytes of a request.
    """
    metrics = Metrics()
    batcher = Batcher(classifier, most_waiting, metrics)
    metrics.waiting.set_function(lambda: batcher.waiting)

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
        try:
            async with asyncio.timeout(BODY_SECONDS):
                content = await _body(request, max_body)
            if content is None:
                return _error(413, f"the request has over {max_body:,} bytes; send it in parts")
            body = (RowsRequest if classifier.columns else ClassifyRequest).model_validate_json(content)
        except TimeoutError:
            return _error(408, f"the request's body took over {BODY_SECONDS} seconds")
        except ClientDisconnect:
            return Response(status_code=499)  # nobody reads it; for the metrics
        except ValidationError as error:
            first = error.errors(include_url=False, include_input=False, include_context=False)[0]
            return _error(422, ": ".join([*(str(part) for part in first["loc"]), first["msg"]]))
        texts = body.texts
        if texts is None:
            texts = [{"text": body.text, **body.model_extra} if classifier.columns else body.text]
        for row, text in enumerate(texts):
            if fault := classifier.fault(text):
                return _error(422, f"text {row}: {fault}; {classifier.wanted}")
        if len(texts) > most_waiting:
            return _error(413, f"{len(texts)} texts in one request, at most {most_waiting} fit; send them in parts")
        try:
            scores = await batcher(texts)
        except QueueFull:
            return _error(429, f"{batcher.waiting} texts are waiting already; try again", {"Retry-After": "1"})
        metrics.texts.inc(len(texts))
        results = [_result(row) for row in scores]
        return JSONResponse(results[0] if body.texts is None else {"results": results})

    def _result(row: np.ndarray) -> dict:
        scores, truncated = row[:-1], bool(row[-1])
        confidence = float(scores.max())
        return {
            "label": classifier.names[scores.argmax()],
            "confidence": confidence,
            "probabilities": dict(zip(classifier.names, map(float, scores), strict=True)),
            "abstained": confidence < threshold,
            "truncated": truncated,
        }

    async def healthz(request: Request) -> Response:
        state = {"status": "ok", "labels": classifier.names, "waiting_texts": batcher.waiting}
        more = {"columns": classifier.columns, "caveat": classifier.caveat}
        return JSONResponse(state | {key: value for key, value in more.items() if value})

    async def show_metrics(request: Request) -> Response:
        return Response(generate_latest(metrics.registry), media_type=CONTENT_TYPE_LATEST)

    @asynccontextmanager
    async def scoring(app: Starlette) -> AsyncIterator[None]:
        task = asyncio.create_task(batcher.run())
        yield  # until the server has answered what it took
        task.cancel()
        batcher._thread.shutdown()

    routes = [
        Route("/classify", classify, methods=["POST"]),
        Route("/healthz", healthz),
        Route("/metrics", show_metrics),
    ]
    handlers = {HTTPException: _refused, Exception: _failed}
    return Starlette(routes=routes, lifespan=scoring, exception_handlers=handlers)


async def _body(request: Request, most: int) -> bytes | None:
    """The request's body; None where it is larger, without reading on."""
    content = b""
    async for chunk in request.stream():
        content += chunk
        if len(content) > most:
            return None
    return content


async def _refused(request: Request, error: HTTPException) -> Response:
    return _error(error.status_code, f"{request.method} {request.url.path}: {error.detail}", error.headers)


async def _failed(request: Request, error: Exception) -> Response:
    return _error(500, "the model failed on this request; the server's log says how")


def _error(status: int, message: str, headers: dict[str, str] | None = None) -> JSONResponse:
    return JSONResponse({"error": message}, status, headers)
