"""The HTTP side: routes, limits, headers and metrics, as an ASGI application."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Coroutine, Iterable, Mapping, MutableMapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import orjson
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, PlatformCollector, ProcessCollector
from prometheus_client.exposition import choose_encoder

from tidegate_sklearn import __version__
from tidegate_sklearn.errors import ModelError, RequestError
from tidegate_sklearn.model import Model
from tidegate_sklearn.protocol import infer

log = logging.getLogger(__name__)

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]

_JSON = ((b"content-type", b"application/json"),)

# from what a small model takes to where a client has given up
_BUCKETS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)


@dataclass(frozen=True, slots=True)
class Answer:
    """One HTTP response; its headers' names are in lower case."""

    status: int
    body: bytes
    headers: tuple[tuple[bytes, bytes], ...] = _JSON

    @classmethod
    def json(cls, content: Mapping[str, Any], status: int = 200) -> Answer:
        """An answer of JSON."""
        return cls(status, orjson.dumps(content))


class Disconnected(Exception):
    """The client went away before its request was whole; there is no one to answer."""


class App:
    """Serves one loaded model under one name.

    Predictions run one at a time on a thread of their own, so that health checks are answered meanwhile.

    Attributes:
        draining: set once the server is to stop: readiness turns false and each answer closes its connection.
    """

    def __init__(
        self, model: Model, name: str, *, version: str | None = None, load_seconds: float = 0.0, max_body: int = 1 << 24
    ) -> None:
        """
        Args:
            model: the model to serve.
            name: the name in its URL.
            version: the version it answers for, in URL, answers and metrics; None where it has none.
            load_seconds: how long the model took to load, for the metrics.
            max_body: the largest request body taken, in bytes.
        """
        self.draining = False
        self._model, self._name, self._version, self._max_body = model, name, version, max_body
        self._worker = ThreadPoolExecutor(max_workers=1, thread_name_prefix="predict")
        self._registry = CollectorRegistry()
        ProcessCollector(registry=self._registry)
        PlatformCollector(registry=self._registry)
        self._labels = labels = {"model": name, "version": version or ""}
        self._requests = Counter(
            "tidegate_server_requests",
            "Inference requests answered, by HTTP status.",
            [*labels, "code"],
            registry=self._registry,
        )
        self._duration = Histogram(
            "tidegate_server_request_duration_seconds",
            "Time from an inference request's headers to its answer.",
            [*labels],
            buckets=_BUCKETS,
            registry=self._registry,
        )
        Gauge(
            "tidegate_server_load_seconds", "Time it took to load the model.", [*labels], registry=self._registry
        ).labels(**labels).set(load_seconds)

    async def __call__(self, scope: Mapping[str, Any], receive: Receive, send: Send) -> None:
        """Answers one HTTP request (the ASGI interface; neither lifespan nor websockets)."""
        try:
            answer = await _answered(self._route(scope, receive))
        except Disconnected:
            return
        headers = [(b"content-length", str(len(answer.body)).encode()), *answer.headers]
        if self.draining:
            headers.append((b"connection", b"close"))
        await send({"type": "http.response.start", "status": answer.status, "headers": headers})
        await send({"type": "http.response.body", "body": answer.body})

    async def _route(self, scope: Mapping[str, Any], receive: Receive) -> Answer:
        path: str = scope["path"]
        match path.rstrip("/").split("/")[1:]:
            case ["v2", "models", name, "versions", version, "infer"]:
                return await self._infer(name, version, scope, receive)
            case ["v2", "models", name, "infer"]:
                return await self._infer(name, None, scope, receive)
            case ["v2", "models", name, "versions", version, "ready"]:
                return self._model_ready(name, version, scope)
            case ["v2", "models", name, "ready"]:
                return self._model_ready(name, None, scope)
            case ["v2", "models", name, "versions", version]:
                return self._metadata(name, version, scope)
            case ["v2", "models", name]:
                return self._metadata(name, None, scope)
            case ["v2"]:
                _check_method(scope, "GET")
                return Answer.json({"name": "tidegate-sklearn", "version": __version__, "extensions": []})
            case ["v2", "health", "live"]:
                _check_method(scope, "GET")
                return Answer.json({"live": True})
            case ["v2", "health", "ready"]:
                _check_method(scope, "GET")
                return self._readiness({"live": True})
            case ["metrics"]:
                _check_method(scope, "GET")
                encoder, content_type = choose_encoder(_header(scope, b"accept"))
                return Answer(200, encoder(self._registry), ((b"content-type", content_type.encode()),))
        raise RequestError(f"there is nothing at {path}", 404)

    def _readiness(self, content: Mapping[str, Any]) -> Answer:
        # There is no "not yet": the server listens only once the model is loaded, so that a probe that merely connects
        # (Knative's default) does not take it for ready too early.
        return Answer.json({**content, "ready": not self.draining}, 503 if self.draining else 200)

    def _model_ready(self, name: str, version: str | None, scope: Mapping[str, Any]) -> Answer:
        _check_method(scope, "GET")
        self._check_model(name, version)
        return self._readiness({"name": name})

    def _metadata(self, name: str, version: str | None, scope: Mapping[str, Any]) -> Answer:
        _check_method(scope, "GET")
        self._check_model(name, version)
        versions = {} if self._version is None else {"versions": [self._version]}
        return Answer.json(
            {
                "name": name,
                **versions,
                "platform": self._model.platform,
                "inputs": self._model.inputs,
                "outputs": self._model.outputs,
            }
        )

    async def _infer(self, name: str, version: str | None, scope: Mapping[str, Any], receive: Receive) -> Answer:
        start = time.perf_counter()
        answer = await _answered(self._predict(name, version, scope, receive))
        self._duration.labels(**self._labels).observe(time.perf_counter() - start)
        self._requests.labels(**self._labels, code=str(answer.status)).inc()
        return answer

    async def _predict(self, name: str, version: str | None, scope: Mapping[str, Any], receive: Receive) -> Answer:
        _check_method(scope, "POST")
        self._check_model(name, version)
        body = await self._body(scope, receive)
        loop = asyncio.get_running_loop()
        return Answer(200, await loop.run_in_executor(self._worker, infer, self._model, name, self._version, body))

    async def _body(self, scope: Mapping[str, Any], receive: Receive) -> bytes:
        if encoding := _header(scope, b"content-encoding").lower().replace("identity", ""):
            raise RequestError(f"the body is encoded as {encoding}; expected plain JSON", 415)
        if _header(scope, b"inference-header-content-length"):
            raise RequestError("binary tensor data are not supported; expected the tensors' data as JSON", 415)
        too_large = RequestError(f"the body is larger than this server's limit of {self._max_body} bytes", 413)
        length = _header(scope, b"content-length")
        if length.isdecimal() and int(length) > self._max_body:
            raise too_large
        body = bytearray()
        while True:
            message = await receive()
            if message["type"] == "http.disconnect":
                raise Disconnected
            body += message.get("body", b"")
            if len(body) > self._max_body:
                raise too_large
            if not message.get("more_body", False):
                return bytes(body)

    def _check_model(self, name: str, version: str | None) -> None:
        if name != self._name:
            raise RequestError(f"there is no model {name!r} here; this server has {self._name!r}", 404)
        if version not in (None, self._version):
            known = "none by version" if self._version is None else f"version {self._version!r}"
            raise RequestError(f"there is no version {version!r} of {name!r} here; this server has {known}", 404)


async def _answered(work: Coroutine[Any, Any, Answer]) -> Answer:
    """The work's answer, or the one that its failure calls for; a traceback goes to the log, never to the client."""
    try:
        return await work
    except RequestError as error:
        headers = _JSON if error.allow is None else (*_JSON, (b"allow", error.allow.encode()))
        return Answer(error.status, orjson.dumps({"error": str(error)}), headers)
    except ModelError as error:
        return Answer.json({"error": str(error)}, 500)
    except Disconnected:
        raise
    except Exception:
        log.exception("a request failed")
        return Answer.json({"error": "the server failed; its log says why"}, 500)


def _check_method(scope: Mapping[str, Any], expected: str) -> None:
    """GET stands for HEAD too: the HTTP server leaves the body out."""
    method: str = scope["method"]
    if method != expected and (method, expected) != ("HEAD", "GET"):
        raise RequestError(f"{method} is not allowed here; expected {expected}", 405, allow=expected)


def _header(scope: Mapping[str, Any], name: bytes) -> str:
    """A request header's value, empty where it is absent; `name` in lower case."""
    headers: Iterable[tuple[bytes, bytes]] = scope["headers"]
    return next((value.decode("latin-1") for key, value in headers if key == name), "")
