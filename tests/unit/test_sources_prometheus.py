"""Prometheus as a source of numbers and of counts, in the words that a real one answers with."""

from __future__ import annotations

import asyncio
import math
import ssl
import subprocess
import time
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from aiohttp import web
from test_sources_envoy import kingress

from tidegate.adapters.api import Api
from tidegate.adapters.sources.prometheus import Answer, NoValue, Prometheus, PrometheusCounts, Server, one, read
from tidegate.core.rollout import series
from tidegate.core.rollout.counts import Ask, Reading, Requests
from tidegate.core.rollout.envoy import Garbage
from tidegate.core.rollout.series import Counters, Series
from tidegate.runtime.queue import Key

KEY = Key("shop", "churn")
ASK = Ask("shop", "churn", {"v1": "r1", "v2": "r2"})


def good(kind: str, result: Any, **more: Any) -> dict[str, Any]:
    return {"status": "success", "data": {"resultType": kind, "result": result}, **more}


# --- one number -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("raw", "number"),
    [
        (good("scalar", [1795517917.388, "0.25"]), 0.25),
        (good("vector", [{"metric": {"pod": "a"}, "value": [1795517917.388, "3"]}]), 3.0),
        (good("vector", [{"metric": {}, "value": [1.0, "3"]}], infos=["name does not end in _total"]), 3.0),
    ],
)
def test_one_number(raw: Any, number: float) -> None:
    assert one(read(200, raw)) == number


@pytest.mark.parametrize(
    ("status", "raw", "told"),
    [
        (200, good("vector", []), "gives 0 series"),
        (200, good("vector", [{"metric": {}, "value": [1, "1"]}] * 2), "gives 2 series"),
        (200, good("vector", [{"metric": {}, "value": [1, "NaN"]}]), "gives NaN"),
        (200, good("scalar", [1, "+Inf"]), "gives +Inf"),
        (200, good("matrix", []), "gives a matrix"),
        (200, good("vector", [{"metric": {}, "histogram": [1, {}]}]), "no number"),
        (200, good("vector", [{"metric": {}, "value": [1, "1"]}], warnings=["store a is down"]), "store a is down"),
        (200, {"status": "success"}, "no result"),
        (400, {"status": "error", "error": "1:5: parse error"}, "1:5: parse error"),
        (503, {"status": "error", "error": "query timed out"}, "query timed out"),
        (401, None, "status 401"),
    ],
)
def test_anything_else_is_no_value(status: int, raw: Any, told: str) -> None:
    with pytest.raises(NoValue) as refused:
        one(read(status, raw))
    assert told in str(refused.value)


# --- the way there ----------------------------------------------------------------------------------------------------


@asynccontextmanager
async def answering(
    answer: Callable[[web.Request], Any],
    tls: ssl.SSLContext | None = None,
    path: str = "/api/v1/query",
    method: str = "POST",
) -> AsyncIterator[str]:
    """A server that answers queries; its URL."""

    async def query(request: web.Request) -> web.StreamResponse:
        found = answer(request)
        found = await found if asyncio.iscoroutine(found) else found
        return found if isinstance(found, web.StreamResponse) else web.json_response(found)

    app = web.Application()
    app.add_routes([web.route(method, path, query)])
    runner = web.AppRunner(app, shutdown_timeout=0.01)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0, ssl_context=tls).start()
    scheme = "https" if tls else "http"
    try:
        yield f"{scheme}://localhost:{runner.addresses[0][1]}"
    finally:
        await runner.cleanup()


async def value(server: Server) -> float:
    async with aiohttp.ClientSession() as session:
        return await Prometheus(session, server).value("vector(1)")


async def test_token_is_read_anew_and_never_told(tmp_path: Path) -> None:
    seen: list[str] = []
    secret = tmp_path / "token"

    def answer(request: web.Request) -> Any:
        seen.append(request.headers["Authorization"])
        return good("scalar", [1, "1"]) if len(seen) < 3 else web.json_response({"status": "error"}, status=403)

    async with answering(answer) as url, aiohttp.ClientSession() as session:
        prometheus = Prometheus(session, Server(url, token_file=secret))
        for token in ("first", "second"):
            secret.write_text(token + "\n")
            assert await prometheus.value("vector(1)") == 1.0
        with pytest.raises(NoValue) as refused:
            await prometheus.value("vector(1)")
        assert "second" not in str(refused.value)
        secret.unlink()
        with pytest.raises(NoValue, match="No such file"):
            await prometheus.value("vector(1)")
    assert seen == ["Bearer first", "Bearer second", "Bearer second"]


async def test_a_token_does_not_follow_a_redirection(tmp_path: Path) -> None:
    (tmp_path / "token").write_text("secret")
    async with answering(lambda _: good("scalar", [1, "1"])) as other:

        def away(_: web.Request) -> Any:
            return web.Response(status=302, headers={"Location": f"{other}/api/v1/query"})

        async with answering(away) as url:
            with pytest.raises(NoValue, match="refuses the query: status 302"):
                await value(Server(url, token_file=tmp_path / "token"))


@pytest.fixture
def certificate(tmp_path: Path) -> tuple[Path, Path]:
    """A certificate for localhost that nobody knows, and its key."""
    key, certificate = tmp_path / "key.pem", tmp_path / "ca.pem"
    new = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]
    names = ["-days", "2", "-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost"]
    subprocess.run([*new, *names, "-keyout", key, "-out", certificate], check=True, capture_output=True)
    return certificate, key


async def test_only_certificates_that_are_trusted(certificate: tuple[Path, Path]) -> None:
    tls = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    tls.load_cert_chain(*certificate)
    async with answering(lambda _: good("scalar", [1, "1"]), tls) as url:
        assert await value(Server(url, ca_file=certificate[0])) == 1.0
        with pytest.raises(NoValue, match="cannot be asked"):
            await value(Server(url))


async def test_time_runs_out() -> None:
    async def late(_: web.Request) -> Any:
        await asyncio.Event().wait()

    async with answering(late) as url:
        with pytest.raises(NoValue, match="no answer in time"):
            await value(Server(url, timeout=0.02))


async def test_nobody_there_and_nobody_named() -> None:
    with pytest.raises(NoValue, match="cannot be asked"):
        await value(Server("http://127.0.0.1:1"))
    with pytest.raises(NoValue, match=r"prometheus\.url"):
        await value(Server())


# --- samples ----------------------------------------------------------------------------------------------------------


@dataclass
class Envoy:
    """What Prometheus has of one Envoy."""

    instance: str = "10.0.0.1:9000"
    job: str = "pods"
    t: float = 1000.0
    uptime: int = 440
    up: str = "1"
    counts: dict[str, tuple[str, str]] = field(default_factory=lambda: {"shop/r1": ("7", "1"), "shop/r2": ("0", "0")})
    more: dict[str, str] = field(default_factory=dict)

    def series(self) -> Iterable[dict[str, Any]]:
        labels = {"job": self.job, "instance": self.instance, **self.more}

        def one(name: str, value: str, **own: str) -> dict[str, Any]:
            return {"metric": {"__name__": name, **labels, **own}, "values": [[self.t - 5, "0"], [self.t, value]]}

        yield one("envoy_server_live", "1")
        yield one("envoy_server_uptime", str(self.uptime))
        for cluster, (fine, bad) in self.counts.items():
            own = {"envoy_cluster_name": cluster}
            yield one("envoy_cluster_membership_total", "1", **own)
            yield one("envoy_cluster_upstream_rq", fine, envoy_response_code="200", **own)
            yield one("envoy_cluster_upstream_rq", bad, envoy_response_code="503", **own)
            for edge in ("5", "+Inf"):
                yield one("envoy_cluster_upstream_rq_time_bucket", fine, le=edge, **own)


def parsed(*envoys: Envoy) -> list[Series]:
    return series.parse([each for envoy in envoys for each in envoy.series()])


def test_samples_become_scrapes_of_each_envoy() -> None:
    times, scrapes = series.envoys(parsed(Envoy(), Envoy("10.0.0.2:9000", t=1002.5, uptime=9)))
    assert times == {("pods", "10.0.0.1:9000"): 1000.0, ("pods", "10.0.0.2:9000"): 1002.5}
    assert scrapes["pods/10.0.0.1:9000"].uptime == 440
    assert scrapes["pods/10.0.0.2:9000"].clusters["shop/r1"] == Requests(8, 1, {5.0: 7, math.inf: 7})


def test_a_series_that_was_not_in_the_last_scrape_is_gone() -> None:
    found = [each for each in Envoy().series() if each["metric"].get("envoy_cluster_name") != "shop/r2"]
    old = Envoy(t=995.0, counts={"shop/r2": ("9", "0")})
    found += [each for each in old.series() if "envoy_cluster_name" in each["metric"]]
    _, scrapes = series.envoys(series.parse(found))
    assert scrapes["pods/10.0.0.1:9000"].clusters.keys() == {"shop/r1"}


@pytest.mark.parametrize(
    ("envoys", "told"),
    [
        ([Envoy(counts={"shop/r1": ("NaN", "0")})], "NaN is not a count"),
        ([Envoy(counts={"shop/r1": ("7.5", "0")})], "7.5 is not a count"),
        ([Envoy(), Envoy(job="again")], "counters twice.*labels that differ: job"),
        ([Envoy(more={"replica": "a"}), Envoy(more={"replica": "b"})], "labels that differ: replica"),
    ],
)
def test_what_is_no_count_or_counted_twice_is_garbage(envoys: list[Envoy], told: str) -> None:
    with pytest.raises(Garbage, match=told):
        series.envoys(parsed(*envoys))


def test_selector_quotes_what_has_a_meaning() -> None:
    assert series.selector(["a/b.c"], 'job="pods"').endswith('envoy_cluster_name=~"|a/b\\\\.c",job="pods"}')


# --- counts -----------------------------------------------------------------------------------------------------------


class World:
    """A cluster, and a Prometheus that scrapes its gateway. Its clock is 100 s behind."""

    SKEW = -100.0

    def __init__(self) -> None:
        self.envoys = [Envoy(), Envoy("10.0.0.2:9000")]
        self.ingresses: list[dict[str, Any]] = [kingress("churn", "r1", "r2")]
        self.asked: list[str] = []
        self.fails: NoValue | None = None
        self.scrape(0.5)

    def scrape(self, ago: float, **counts: tuple[str, str]) -> None:
        """All Envoys have been scraped so many seconds ago."""
        for envoy in self.envoys:
            envoy.t = round(time.time() + self.SKEW - ago, 3)
            envoy.uptime += 5
            envoy.counts = envoy.counts | {f"shop/{name}": value for name, value in counts.items()}

    def change(self, since: float = 0.0) -> None:
        """A change of the Route has come into force just now."""
        version = str(int(self.ingresses[0]["metadata"]["resourceVersion"]) + 1)
        at = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(time.time() - since))
        self.ingresses = [kingress("churn", "r1", "r2", version=version, lastTransitionTime=at)]

    async def call(self, method: str, path: str, query: Any = None, accept: str = "", **_: Any) -> Any:
        assert (method, path.endswith("/ingresses")) == ("GET", True)
        whole = "PartialObjectMetadata" not in accept
        return {"items": [i if whole else {"metadata": i["metadata"]} for i in self.ingresses]}

    async def ask(self, promql: str) -> Answer:
        self.asked.append(promql)
        if self.fails:
            raise self.fails
        if promql.startswith("up "):
            now = time.time() + self.SKEW
            metrics = [({"job": e.job, "instance": e.instance}, e.up) for e in self.envoys]
            return Answer("vector", [{"metric": m, "value": [now, up]} for m, up in metrics if up])
        if "istio" in promql:
            return Answer("matrix", list(self.istio(promql)))
        return Answer("matrix", [each for envoy in self.envoys for each in envoy.series()])

    def istio(self, promql: str) -> Iterable[dict[str, Any]]:
        for envoy in self.envoys:
            labels = {"job": envoy.job, "instance": envoy.instance}
            told = {"istio_build": "1", 'istio_ok{ns="shop",svc="r1"}': "9", 'istio_bad{ns="shop",svc="r1"}': "2"}
            told |= {'istio_ms_bucket{ns="shop",svc="r1"}': "8"}
            for name, number in told.items():
                if promql.startswith(f"{name}["):
                    own = {"le": "+Inf"} if "bucket" in name else {}
                    yield {"metric": labels | own, "values": [[envoy.t, number]]}


@pytest.fixture
def world() -> World:
    return World()


SERVER = Server("http://prometheus", scrape_interval=5)


@pytest.fixture
def counts(world: World) -> PrometheusCounts:
    return made(world)


def made(world: World, server: Server = SERVER) -> PrometheusCounts:
    fake: Any = world
    api: Api = fake
    prometheus: Prometheus = fake
    return PrometheusCounts(api, prometheus, server)


async def look(counts: PrometheusCounts) -> Reading[Requests]:
    return (await counts.read({KEY: ASK}))[KEY]


async def test_counts_of_all_envoys(world: World, counts: PrometheusCounts) -> None:
    found = await look(counts)
    assert found.trouble == ""
    assert found.versions == {
        "v1": Requests(16, 2, {5.0: 14, math.inf: 14}),
        "v2": Requests(0, 0, {5.0: 0, math.inf: 0}),
    }
    assert world.asked[1].startswith('{__name__=~"envoy_cluster_upstream_rq|')
    assert 'envoy_cluster_name=~"|shop/r1|shop/r2",namespace="kourier-system"}[15000ms]' in world.asked[1]
    assert "rate(" not in "".join(world.asked)


async def test_increments_are_exact(world: World, counts: PrometheusCounts) -> None:
    before = await look(counts)
    assert (await look(counts)).t == before.t, "nothing new"
    world.envoys[0].t += 0.1
    world.envoys[0].counts["shop/r1"] = ("10", "3")
    after = await look(counts)
    assert after.since(before) == {
        "v1": Requests(5, 2, {5.0: 3, math.inf: 3}),
        "v2": Requests(0, 0, {5.0: 0, math.inf: 0}),
    }


def down(world: World) -> None:
    world.fails = NoValue("Prometheus cannot be asked: no answer in time")


def one_cannot_be_scraped(world: World) -> None:
    world.envoys[1].up = "0"


def half_of_the_series_missing(world: World) -> None:
    def without(envoy: Envoy) -> None:
        envoy.series = lambda: iter(())  # type: ignore[method-assign]

    without(world.envoys[1])


def nothing(world: World) -> None:
    world.envoys = []


def no_samples(world: World) -> None:
    for envoy in world.envoys:
        envoy.series = lambda: iter(())  # type: ignore[method-assign]


def not_a_number(world: World) -> None:
    world.envoys[0].counts["shop/r1"] = ("NaN", "0")


def unknown(world: World) -> None:
    del world.envoys[1].counts["shop/r2"]


def not_ready(world: World) -> None:
    world.ingresses = [kingress("churn", "r1", "r2", version="8", status="Unknown")]


@pytest.mark.parametrize(
    ("breaks", "told"),
    [
        (down, "no answer in time"),
        (one_cannot_be_scraped, "cannot scrape 1 of the gateway's pods (10.0.0.2:9000)"),
        (half_of_the_series_missing, "cannot scrape 1 of the gateway's pods (10.0.0.2:9000)"),
        (nothing, "has not scraped the gateway in 10 minutes"),
        (no_samples, "no counters of the gateway from the last 15000ms"),
        (not_a_number, "NaN is not a count"),
        (unknown, "1 of 2 pods of the gateway do not know shop/r2 yet"),
        (not_ready, "putting a change of churn into force"),
    ],
)
async def test_what_cannot_be_relied_on_is_a_trouble_and_no_count(
    world: World, counts: PrometheusCounts, breaks: Callable[[World], None], told: str
) -> None:
    assert (await look(counts)).trouble == ""
    breaks(world)
    found = await look(counts)
    assert told in found.trouble
    assert found.versions == {}


async def test_a_pod_that_is_gone_is_no_trouble_but_other_counters(world: World, counts: PrometheusCounts) -> None:
    before = await look(counts)
    world.envoys.pop()
    world.scrape(0.1)
    after = await look(counts)
    assert after.trouble == ""
    assert after.since(before) is None


async def test_no_window_has_a_change_in_it_that_was_scraped_before_it_was_seen(
    world: World, counts: PrometheusCounts
) -> None:
    before = await look(counts)
    world.change()
    world.scrape(2.0, r1=("9", "1"))  # seen only now, so it may have been under way then, probes and all
    found = await look(counts)
    assert "a change of the Route" in found.trouble
    world.scrape(-0.1, r1=("20", "1"))  # after it was seen
    first = await look(counts)
    assert first.trouble == ""
    assert first.since(before) is None
    assert first.versions["v1"].latency == {}, "probes may still be on their way into the histogram"
    world.scrape(-0.2, r1=("21", "1"))
    second = await look(counts)
    assert second.since(first) == {"v1": Requests(2), "v2": Requests()}
    assert second.versions["v1"].latency


async def test_an_operator_that_starts_anew_goes_on_with_the_same_counters(
    world: World, counts: PrometheusCounts
) -> None:
    before = await look(counts)
    world.scrape(0.0, r2=("3", "0"))
    increments = (await look(made(world))).since(before)
    assert increments is not None
    assert increments["v2"] == Requests(6, 0, {5.0: 6, math.inf: 6})


async def test_an_operator_that_starts_after_a_change_waits_for_a_scrape(world: World) -> None:
    world.change(since=30.0)
    world.scrape(1.0)
    counts = made(world)
    assert "a change of the Route" in (await look(counts)).trouble
    world.scrape(-0.1)
    assert (await look(counts)).trouble == ""


async def test_counters_of_another_gateway(world: World) -> None:
    counters = Counters(
        targets="istio_build",
        requests='istio_ok{ns="{namespace}",svc="{revision}"}',
        errors='istio_bad{ns="{namespace}",svc="{revision}"}',
        latency='istio_ms_bucket{ns="{namespace}",svc="{revision}"}',
    )
    counts = made(world, replace(SERVER, counters=counters))
    found = await look(counts)
    assert found.trouble == ""
    assert found.versions == {"v1": Requests(18, 4, {math.inf: 16}), "v2": Requests(0, 0, {math.inf: 0})}
    assert "max_over_time(istio_build[10m])" in world.asked[0]
    swapped = replace(counters, requests=counters.errors, errors=counters.requests)
    assert "more errors than requests" in (await look(made(world, replace(SERVER, counters=swapped)))).trouble
