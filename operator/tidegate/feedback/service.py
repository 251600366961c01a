"""The service: HTTP in front of the store, health and metrics, a start and an end.

The server is aiohttp's: mature, its parser in C, and in the image already as what the operator's client stands on.
docs/feedback.md has what it was measured at; the disk's syncs and JSON take more time than any server would save.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from aiohttp import web
from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    ProcessCollector,
    disable_created_metrics,
    exposition,
)
from prometheus_client.core import CounterMetricFamily, Metric
from prometheus_client.registry import Collector

from tidegate import __version__
from tidegate.feedback.items import BadRequest, Item, Refusal, locate, read
from tidegate.feedback.journal import Full, Journal
from tidegate.feedback.limits import Limits
from tidegate.feedback.store import Closed, Store
from tidegate.feedback.totals import Outcome, Totals

log = logging.getLogger(__name__)

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]

KEEP_ALIVE = 180.0
"""Seconds that an idle connection stays: longer than clients and proxies keep theirs (Go: 90), so that none sends a
request into a connection that is just being closed."""
BODY_SECONDS = 10.0
"""Seconds that a client may take to send a body."""
RETRY_FULL = 30
"""Seconds after which to try again where the disk is full."""
RETRY_BUSY = 1
"""Seconds after which to try again where too much is under way, or the service is about to end."""


@dataclass(frozen=True, slots=True)
class Options:
    """How to run."""

    data: Path
    """Folder of the store."""
    port: int = 8080
    host: str = ""
    """Address to listen on; all of them if empty."""
    limits: Limits = field(default_factory=Limits)
    compact_at: int = 8 * 1024 * 1024
    """Bytes of log at which a snapshot takes their place."""
    drain: float = 3.0
    """Seconds after SIGTERM for which requests are still answered: until nobody sends any more."""


class Rewards(Collector):
    """Rewards by version, read from the counters when Prometheus asks. The limits bound the number of series."""

    def __init__(self, totals: Totals) -> None:
        self._totals = totals

    def collect(self) -> Iterable[Metric]:
        """Number and sum."""
        labels = ("model_namespace", "modeldeployment", "version")
        count = CounterMetricFamily("tidegate_feedback_rewards", "Rewards credited to each version.", labels=labels)
        total = CounterMetricFamily("tidegate_feedback_rewards_sum", "Their sum; each is from 0 to 1.", labels=labels)
        for where, versions in self._totals:
            for version, counter in versions.items():
                count.add_metric([*where, version], counter.count)
                total.add_metric([*where, version], counter.total)
        return count, total


class Metrics:
    """What the service tells of itself, in a registry of its own."""

    def __init__(self, store: Store) -> None:
        self.registry = registry = CollectorRegistry()
        ProcessCollector(registry=registry)
        registry.register(Rewards(store.totals))
        Gauge("tidegate_build_info", "The release; always 1.", ["version"], registry=registry).labels(__version__).set(
            1
        )
        self.requests = Counter(
            "tidegate_feedback_requests", "Requests answered, by path and status.", ["path", "code"], registry=registry
        )
        self.items = Counter(
            "tidegate_feedback_items", "Items: credited, duplicate or refused.", ["result"], registry=registry
        )
        for result in ("credited", "duplicate", "refused"):
            self.items.labels(result)
        commits = Histogram(
            "tidegate_feedback_commit_duration_seconds",
            "Time that a write to the disk took, with its sync.",
            buckets=(0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5),
            registry=registry,
        )
        store.observe = commits.observe
        size = Gauge("tidegate_feedback_log_bytes", "Log since the last snapshot.", registry=registry)
        size.set_function(lambda: store.log_bytes)


class Service:
    """Answers requests.

    Attributes:
        draining: set once the service is to end: not ready any more, and each answer closes its connection.
    """

    def __init__(self, store: Store, limits: Limits) -> None:
        self.draining = False
        self._store, self._limits, self._metrics = store, limits, Metrics(store)
        self._in_flight = 0

    def app(self) -> web.Application:
        """The routes."""
        app = web.Application(middlewares=[self._answered], client_max_size=self._limits.body)
        app.router.add_post("/v1/feedback", self._feedback)
        app.router.add_get("/v1/totals", self._totals)
        app.router.add_get("/healthz", self._healthz)
        app.router.add_get("/readyz", self._readyz)
        app.router.add_get("/metrics", self._scrape)
        return app

    @web.middleware
    async def _answered(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        """Every answer, an error too, is JSON, is counted, and says goodbye while draining."""
        try:
            answer = await handler(request)
        except web.HTTPException as error:
            answer = self._refused(request, error)
        except Exception:
            log.exception("a request failed")
            answer = web.json_response({"error": "the service failed; its log says why"}, status=500)
        # what is not a path of ours has one label in common, or anybody could make series
        path = request.path if request.match_info.http_exception is None else "other"
        self._metrics.requests.labels(path, str(answer.status)).inc()
        if self.draining:
            answer.force_close()
        return answer

    def _refused(self, request: web.Request, error: web.HTTPException) -> web.Response:
        words = error.text or error.reason
        headers = {name: value for name, value in error.headers.items() if name in ("Allow", "Retry-After")}
        match error.status:
            case 404:
                words = f"there is nothing at {request.path[:100]}: POST /v1/feedback, GET /v1/totals"
            case 405:
                words = f"{request.method} is not allowed here: use {error.headers['Allow']}"
            case 413:
                words = f"the body is too large: send at most {self._limits.body} bytes, as several requests"
        answer = web.json_response({"error": words}, status=error.status, headers=headers)
        if error.status in (408, 413, 415):
            answer.force_close()  # the rest of the body is not worth reading
        return answer

    # --- what clients send ---

    async def _feedback(self, request: web.Request) -> web.Response:
        batch, read_items = await self._read(request)
        good = [item for item in read_items if not isinstance(item, Refusal)]
        try:
            told = iter(await self._store.add(good) if good else [])
        except Full as full:
            raise _later(f"not taken: {full}. Send it again later, with the same id", RETRY_FULL) from full
        except Closed as closed:
            raise _later(f"{closed}: send it again, with the same id", RETRY_BUSY) from closed
        outcomes: list[Outcome] = [item if isinstance(item, Refusal) else next(told) for item in read_items]
        for outcome in outcomes:
            self._metrics.items.labels("refused" if isinstance(outcome, Refusal) else outcome).inc()
        return _batch_answer(outcomes) if batch else _answer(outcomes[0])

    async def _read(self, request: web.Request) -> tuple[bool, list[Item | Refusal]]:
        if request.content_type != "application/json":
            raise web.HTTPUnsupportedMediaType(text="send JSON, with Content-Type: application/json")
        if request.headers.get("Content-Encoding", "identity") != "identity":
            raise web.HTTPUnsupportedMediaType(text="send the body as it is, without Content-Encoding")
        expected = self._limits.body if request.content_length is None else request.content_length
        if expected > self._limits.body:
            raise web.HTTPRequestEntityTooLarge(self._limits.body, expected)
        if self._in_flight + expected > self._limits.in_flight:
            raise _later("too much is being sent at a time", RETRY_BUSY)
        self._in_flight += expected
        try:
            async with asyncio.timeout(BODY_SECONDS):
                body = await request.read()
            return read(body, self._limits)
        except TimeoutError:
            raise web.HTTPRequestTimeout(text=f"the body did not come within {BODY_SECONDS:.0f} s") from None
        except BadRequest as error:
            raise web.HTTPBadRequest(text=str(error)) from None
        finally:
            self._in_flight -= expected

    # --- what is read from it ---

    async def _totals(self, request: web.Request) -> web.Response:
        if unknown := request.query.keys() - {"namespace", "deployment"}:
            raise web.HTTPBadRequest(text=f"there is no parameter {min(unknown)[:40]!r}: namespace and deployment")
        found = locate(request.query.get("namespace", ""), request.query.get("deployment", ""))
        if isinstance(found, Refusal):
            raise web.HTTPBadRequest(text="give both ?namespace= and &deployment=, as the ModelDeployment has them")
        totals = self._store.totals
        versions = {
            version: {"count": counter.count, "sum": counter.total, "sumsq": counter.squares}
            for version, counter in totals.of(found).items()
        }
        return web.json_response({"mark": totals.mark, "versions": versions})

    async def _healthz(self, request: web.Request) -> web.Response:
        return web.json_response({"ok": True})

    async def _readyz(self, request: web.Request) -> web.Response:
        return web.json_response({"ready": not self.draining}, status=503 if self.draining else 200)

    async def _scrape(self, request: web.Request) -> web.Response:
        encode, content_type = exposition.choose_encoder(request.headers.get("Accept", ""))
        return web.Response(body=encode(self._metrics.registry), headers={"Content-Type": content_type})


def _later(words: str, seconds: int) -> web.HTTPException:
    return web.HTTPServiceUnavailable(text=words, headers={"Retry-After": str(seconds)})


def _told(outcome: Outcome) -> dict[str, str]:
    return {"status": "refused", "error": outcome.error} if isinstance(outcome, Refusal) else {"status": outcome}


def _answer(outcome: Outcome) -> web.Response:
    return web.json_response(_told(outcome), status=outcome.status if isinstance(outcome, Refusal) else 200)


def _batch_answer(outcomes: Sequence[Outcome]) -> web.Response:
    """200 if every item was taken, 207 if some were refused, and their status if all were."""
    refused = [outcome.status for outcome in outcomes if isinstance(outcome, Refusal)]
    status = 200 if not refused else 207 if len(refused) < len(outcomes) else max(refused)
    counts: dict[str, Any] = {
        "credited": sum(outcome == "credited" for outcome in outcomes),
        "duplicates": sum(outcome == "duplicate" for outcome in outcomes),
        "refused": len(refused),
    }
    return web.json_response(counts | {"results": [_told(outcome) for outcome in outcomes]}, status=status)


async def run(options: Options, stop: asyncio.Event) -> None:
    """Serves until `stop` is set, then answers what is under way, or until the disk fails.

    Raises:
        StoreError: the store cannot be opened.
        OSError: the port cannot be had, or the disk failed.
    """
    disable_created_metrics()  # type: ignore[no-untyped-call]  # a second series for each, which nobody asks for
    with Journal(options.data, options.limits) as journal:
        store = Store(journal, options.compact_at)
        service = Service(store, options.limits)
        runner = web.AppRunner(
            service.app(), access_log=None, keepalive_timeout=KEEP_ALIVE, handle_signals=False, shutdown_timeout=10
        )
        await runner.setup()
        writing = asyncio.create_task(store.run(), name="store")
        stopping = asyncio.create_task(stop.wait(), name="stop")
        try:
            site = web.TCPSite(runner, options.host or None, options.port, backlog=1024)
            await site.start()
            log.info("listening on %s, counters %s", site.name, store.totals.mark)
            await asyncio.wait({writing, stopping}, return_when=asyncio.FIRST_COMPLETED)
            service.draining = True
            if not writing.done():
                log.info("stopping: answering for %.0f s more", options.drain)
                await asyncio.wait({writing}, timeout=options.drain)
        finally:
            service.draining = True
            await runner.cleanup()
            writing.cancel()
            stopping.cancel()
            await asyncio.wait({writing, stopping})
        if not writing.cancelled():
            writing.result()  # the disk's error
