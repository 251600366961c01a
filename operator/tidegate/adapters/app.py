"""The operator's process: kopf's watches, the workers, leadership, probes and metrics."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import socket
import time
from collections.abc import AsyncIterator, Callable, Coroutine
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import aiohttp
import kopf
from aiohttp import web
from kubernetes.aio.client import ApiException
from kubernetes.aio.leaderelection import electionconfig, leaderelection
from kubernetes.aio.leaderelection.resourcelock.leaselock import LeaseLock
from prometheus_client import disable_created_metrics, exposition

from tidegate.adapters.api import METADATA, Api, ApiError, connected, in_cluster, words_of
from tidegate.adapters.ledger import Files, Limits
from tidegate.adapters.pods import Pods
from tidegate.adapters.sources.feedback import Feedback
from tidegate.adapters.sources.gateway import Gateway, Where
from tidegate.adapters.sources.prometheus import Prometheus, PrometheusCounts, Server
from tidegate.adapters.sources.sampler import Sampler
from tidegate.adapters.telemetry import Metrics
from tidegate.adapters.watch import INDEXED_CHILDREN, Child, Watch, child_of
from tidegate.api import API_VERSION
from tidegate.core.observed import Object
from tidegate.runtime.process import heed_signals
from tidegate.runtime.queue import Key, KeyQueue
from tidegate.runtime.reconcile import Reconciler
from tidegate.runtime.write import Conflict

log = logging.getLogger(__name__)

WORKERS = 8
RESYNC = 600.0
"""Seconds between passes over everything, whatever the watches tell."""
RELIST = 10.0
"""Seconds until the next try where that list failed."""
STUCK = 300.0
"""Seconds after which a key that nobody takes up, or a start that is not done, means that the process is stuck."""
LEASE = "tidegate-operator"
LEASE_TRY = 5.0
"""Seconds that one call about the lease may take."""
LEASE_HELD = 14.0
"""Seconds after the last renewal at which this replica stops acting: before others may take the lease, at 15."""


@dataclass(frozen=True)
class Options:
    """How to run."""

    namespaces: tuple[str, ...] = ()
    """Namespaces to look after; all of them if empty."""
    port: int = 8080
    """Port of /healthz, /readyz and /metrics."""
    elect: bool = True
    """Whether to act only while holding the lease."""
    lease_namespace: str = "tidegate-system"
    """Namespace of the lease."""
    gateway: Where = field(default_factory=Where)
    """Where the gateway's pods are."""
    feedback: str = ""
    """URL of the feedback service; empty if there is none."""
    prometheus: Server = field(default_factory=Server)
    """Where guardrails' own queries are asked."""
    counts_from_prometheus: bool = False
    """Whether requests are counted there too, and not at the gateway itself."""
    ledger: Path | None = None
    """Folder of the ledger; none is kept without."""
    ledger_limits: Limits = field(default_factory=Limits)


def leading_pod(lease: Object) -> str:
    """The pod that holds the lease; empty if none does."""
    return str(lease["spec"].get("holderIdentity") or "").rpartition("-")[0]


class LeadershipLost(Exception):
    """Another replica may be acting now; this process must not."""


async def run(options: Options, stop: asyncio.Event) -> None:
    """Runs the operator until `stop` is set, or until something that cannot be mended here ends it."""
    disable_created_metrics()  # type: ignore[no-untyped-call]  # a second series for each, which nobody asks for
    async with connected() as api, aiohttp.ClientSession() as session:
        queue = KeyQueue()
        pods = Pods(api, lambda key: queue.add(key) if watch.enqueues else None, options.namespaces)
        metrics = Metrics(queue)
        prometheus, clusterwide = Prometheus(session, options.prometheus), not options.namespaces
        sampler = Sampler(
            PrometheusCounts(api, prometheus, options.prometheus, clusterwide=clusterwide)
            if options.counts_from_prometheus
            else Gateway(api, session, options.gateway, direct=in_cluster(), clusterwide=clusterwide),
            Feedback(session, options.feedback),
            prometheus,
            asks=lambda: watch.asks(),
            changed=queue.add,
            took=metrics.looked,
        )
        watch = Watch(api, queue, pods, sampler.latest)
        health = Health(watch, queue, pods)
        ledger = Files(options.ledger, options.ledger_limits, metrics.kept) if options.ledger else None
        reconciler = Reconciler(watch, api, metrics, _now, queue, ledger)
        registry = kopf.OperatorRegistry()
        watch.register(registry)
        kopf.on.login(registry=registry)(_login)
        kopf_stop = asyncio.Event()

        async def act() -> None:
            await pods.listed.wait()
            await watch.listening.wait()  # a pass before that would take whatever is not yet known for not there
            metrics.leader.set(1)
            watch.enqueues = True  # what changed before is found by the first pass over everything
            async with asyncio.TaskGroup() as group:
                for _ in range(WORKERS):
                    group.create_task(reconciler.work())
                group.create_task(_resync(api, watch, queue, health, options.namespaces))
                group.create_task(sampler.run())

        async with _serving(options.port, health, metrics, ledger):
            tasks = {
                asyncio.create_task(_kopf(registry, options, kopf_stop, stop), name="watches"),
                asyncio.create_task(_lead(api, options, act) if options.elect else act(), name="workers"),
                asyncio.create_task(pods.run(), name="watch on pods"),
                asyncio.create_task(stop.wait(), name="stop"),
            }
            try:
                done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
                for task in done:
                    task.result()  # whatever ended the process is its error
                    if task.get_name() != "stop":
                        raise RuntimeError(f"{task.get_name()}: ended by itself")
            finally:
                # the watches last: as it ends, kopf cancels every task there is, that which gives the lease back too
                others = [task for task in tasks if task.get_name() != "watches"]
                for task in others:
                    task.cancel()
                await asyncio.wait(others, timeout=10)
                kopf_stop.set()
                await asyncio.wait(tasks, timeout=10)


def _now() -> datetime:
    """The time, whole seconds: finer ones do not survive a status."""
    return datetime.now(UTC).replace(microsecond=0)


def _login(**context: Any) -> kopf.ConnectionInfo | None:
    """Kopf's credentials: the pod's own account, or the kubeconfig. Asked for again when they have expired."""
    if "KUBECONFIG" in os.environ:
        return kopf.login_with_kubeconfig(**context)
    return kopf.login_with_service_account(**context) or kopf.login_with_kubeconfig(**context)


async def _kopf(
    registry: kopf.OperatorRegistry, options: Options, kopf_stop: asyncio.Event, stop: asyncio.Event
) -> None:
    settings = kopf.OperatorSettings()
    settings.posting.enabled = False  # Tidegate writes its own Events, on transitions only
    settings.watching.server_timeout = 300  # a watch that has gone silent is made anew
    settings.watching.inactivity_timeout = 330
    settings.watching.connect_timeout = 10
    # kopf would name this process after its user, and a container's user need not have a name
    identity: Any = socket.gethostname()
    existing = asyncio.all_tasks()
    tasks = await kopf.spawn_tasks(
        registry=registry,
        settings=settings,
        identity=identity,
        standalone=True,
        clusterwide=not options.namespaces,
        namespaces=options.namespaces,
        stop_flag=kopf_stop,
    )
    heed_signals(stop)  # kopf has taken them for itself
    await kopf.run_tasks(tasks, ignored=existing)


async def _lead(api: Api, options: Options, act: Callable[[], Coroutine[None, None, None]]) -> None:
    """Acts while this replica holds the lease, and gives it back on the way out so that the next need not wait."""
    identity = f"{socket.gethostname()}-{os.getpid()}"  # `leading_pod` takes it apart
    await _provide(api, options.lease_namespace)
    lock = Lock(LEASE, options.lease_namespace, identity, api.raw)
    leading = asyncio.Event()

    async def started() -> None:
        leading.set()

    async def stopped() -> None:
        """Nothing: the election's end is what ends the process."""

    timing = {"lease_duration": 15, "renew_deadline": 10, "retry_period": 2}
    election = leaderelection.LeaderElection(
        electionconfig.Config(lock, **timing, onstarted_leading=started, onstopped_leading=stopped)
    )
    holding = asyncio.create_task(election.run())
    waiting = asyncio.create_task(leading.wait())
    acting: asyncio.Task[None] | None = None
    lapsing: asyncio.Task[None] | None = None
    try:
        await asyncio.wait({holding, waiting}, return_when=asyncio.FIRST_COMPLETED)
        if leading.is_set():
            acting, lapsing = asyncio.create_task(act()), asyncio.create_task(lock.lapsed())
            await asyncio.wait({holding, acting, lapsing}, return_when=asyncio.FIRST_COMPLETED)
            if acting.done():
                acting.result()
        if holding.done():
            holding.result()
        raise LeadershipLost(f"{identity} lost the lease {options.lease_namespace}/{LEASE}")
    finally:
        ending = [task for task in (acting, lapsing, waiting, holding) if task is not None]
        for task in ending:
            task.cancel()
        await asyncio.gather(*ending, return_exceptions=True)  # nothing may act, or renew, once it is given back
        with contextlib.suppress(
            ApiError, Conflict, aiohttp.ClientError, OSError
        ):  # the lease runs out by itself otherwise
            async with asyncio.timeout(LEASE_TRY):
                await _release(api, options.lease_namespace, identity)


class Lock(LeaseLock):
    """The lease. A call that gets no answer is a failed try, not the end of the process."""

    _renewed = 0.0

    async def get(self, name: str, namespace: str) -> Any:
        """The lease as it is, or the error."""
        try:
            async with asyncio.timeout(LEASE_TRY):
                return await super().get(name, namespace)
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            return False, ApiException(status=0, reason=words_of(error))

    async def create(self, name: str, namespace: str, election_record: Any) -> bool:
        """Makes the lease, ours from the beginning."""
        return await self._take(super().create(name, namespace, election_record))

    async def update(self, name: str, namespace: str, updated_record: Any) -> bool:
        """Takes or renews the lease."""
        return await self._take(super().update(name, namespace, updated_record))

    async def _take(self, call: Coroutine[Any, Any, bool]) -> bool:
        asked = asyncio.get_running_loop().time()
        try:
            async with asyncio.timeout(LEASE_TRY):
                taken = await call
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            log.warning("cannot renew the lease: %s", words_of(error))
            return False
        if taken:
            self._renewed = asked
        return taken

    async def lapsed(self) -> None:
        """Returns once the lease has not been renewed for so long that another replica may soon take it."""
        while (left := self._renewed + LEASE_HELD - asyncio.get_running_loop().time()) > 0:  # noqa: ASYNC110
            await asyncio.sleep(left)


async def _provide(api: Api, namespace: str) -> None:
    """Sees to it that there is a lease, held by nobody if it is new: the client's own way of making one fails."""
    lease = {"apiVersion": "coordination.k8s.io/v1", "kind": "Lease", "metadata": {"name": LEASE}}
    with contextlib.suppress(Conflict):  # there is one
        await api.call("POST", f"/apis/coordination.k8s.io/v1/namespaces/{namespace}/leases", body=lease)


async def _release(api: Api, namespace: str, identity: str) -> None:
    """Gives the lease back if it is ours: a lease without a holder is free at once."""
    path = f"/apis/coordination.k8s.io/v1/namespaces/{namespace}/leases/{LEASE}"
    lease = await api.get(path)
    if lease is None or lease["spec"].get("holderIdentity") != identity:
        return
    free = {"metadata": {"resourceVersion": lease["metadata"]["resourceVersion"]}, "spec": {"holderIdentity": ""}}
    await api.call("PATCH", path, body=free, content_type="application/merge-patch+json")


async def _resync(api: Api, watch: Watch, queue: KeyQueue, health: Health, namespaces: tuple[str, ...]) -> None:
    """Passes over everything now and then, and finds out whether the watches still tell of what is there."""
    while True:
        try:
            known = watch.children()  # before the list, so that what comes meanwhile is in both
            listed, children = await _list(api, namespaces), await _list_children(api, namespaces)
        except (ApiError, aiohttp.ClientError, TimeoutError) as error:
            log.warning("cannot list ModelDeployments and what belongs to them, next try in %.0f s: %s", RELIST, error)
            await asyncio.sleep(RELIST)
            continue
        health.compare(listed, known - children)
        for key in listed:
            queue.add(key)
        await asyncio.sleep(RESYNC)


async def _list(api: Api, namespaces: tuple[str, ...]) -> set[Key]:
    found: set[Key] = set()
    for path in [f"/namespaces/{namespace}" for namespace in namespaces] or [""]:
        items = (await api.call("GET", f"/apis/{API_VERSION}{path}/modeldeployments"))["items"]
        found |= {Key(item["metadata"]["namespace"], item["metadata"]["name"]) for item in items}
    return found


async def _list_children(api: Api, namespaces: tuple[str, ...]) -> set[Child]:
    """Every object that may be a child; none of a kind that is not installed."""
    found: set[Child] = set()
    for group, version, plural in INDEXED_CHILDREN:
        for path in [f"/namespaces/{namespace}" for namespace in namespaces] or [""]:
            try:
                listing = await api.call("GET", f"/apis/{group}/{version}{path}/{plural}", accept=METADATA)
            except ApiError as error:
                if error.status != 404:
                    raise
                continue
            found |= {child_of(plural, item) for item in listing["items"] or ()}
    return found


class Health:
    """Whether the process does its work."""

    def __init__(self, watch: Watch, queue: KeyQueue, pods: Pods) -> None:
        self._watch, self._queue, self._pods = watch, queue, pods
        self._begun = time.monotonic()
        self._unseen: set[Key] = set()
        self._missed: set[Key] = set()
        self._gone: set[Child] = set()
        self._ghosts: set[Child] = set()

    def compare(self, listed: set[Key], gone: set[Child]) -> None:
        """Takes note of what a list shows and the watches do not, and of children that only the watches show.

        Either twice, a whole resync apart, is a fault: kopf misses what is deleted while a watch is broken.
        """
        self._ghosts = gone & self._gone
        self._gone = gone
        missing = listed - set(self._watch.keys())
        self._missed = missing & self._unseen
        self._unseen = missing

    def unready(self) -> str:
        """What is not yet known of the cluster; empty if all is."""
        if not self._watch.listening.is_set():
            return "the watches have not yet told what there is"
        return "" if self._pods.listed.is_set() else "pods have not yet been listed"

    def fault(self) -> str:
        """What is wrong; empty if nothing is."""
        if time.monotonic() > self._begun + STUCK and (unready := self.unready()):
            return f"{unready}, after {STUCK:.0f} s"
        if self._missed:
            return f"the watches do not tell of {', '.join('/'.join(key) for key in sorted(self._missed)[:5])}"
        if self._ghosts:
            ghosts = (f"{child.plural} {child.namespace}/{child.name}" for child in sorted(self._ghosts)[:5])
            return f"the watches still tell of {', '.join(ghosts)}"
        if (lag := self._queue.lag()) > STUCK:
            return f"a key has been waiting for {lag:.0f} s"
        return ""


@contextlib.asynccontextmanager
async def _serving(port: int, health: Health, metrics: Metrics, ledger: Files | None) -> AsyncIterator[None]:
    """Answers /healthz, /readyz, /metrics and /ledger/<namespace>/<name> meanwhile."""

    async def healthz(_: web.Request) -> web.Response:
        fault = health.fault()
        return web.Response(text=fault or "ok", status=503 if fault else 200)

    async def readyz(_: web.Request) -> web.Response:
        unready = health.unready()
        return web.Response(text=unready or "ok", status=503 if unready else 200)

    async def show(_: web.Request) -> web.Response:
        body = exposition.generate_latest(metrics.registry)
        return web.Response(body=body, headers={"Content-Type": exposition.CONTENT_TYPE_LATEST})

    async def lines(request: web.Request) -> web.StreamResponse:
        namespace, name = request.match_info["namespace"], request.match_info["name"]
        if ledger is None:
            return web.Response(text="no ledger is kept (ledger.enabled of the chart, --ledger)", status=404)
        pieces = await ledger.read(namespace, name)
        if pieces is None:
            return web.Response(text=f"the ledger of this replica has no line about {namespace}/{name}", status=404)
        response = web.StreamResponse(headers={"Content-Type": "application/x-ndjson"})
        await response.prepare(request)
        async for piece in pieces:
            await response.write(piece)
        await response.write_eof()
        return response

    app = web.Application()
    app.add_routes(
        [
            web.get("/healthz", healthz),
            web.get("/readyz", readyz),
            web.get("/metrics", show),
            web.get("/ledger/{namespace}/{name}", lines),
        ]
    )
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    try:
        await web.TCPSite(runner, None, port).start()
    except OSError as error:
        raise ApiError(
            0, f"port {port} is not free for probes and metrics: {error}. Give another with --port"
        ) from error
    try:
        yield
    finally:
        await runner.cleanup()
