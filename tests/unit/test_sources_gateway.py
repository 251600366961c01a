"""The gateway as a source of counts, with Envoys of our own behind real sockets."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from typing import Any

import aiohttp
import pytest
from aiohttp import web
from test_sources_envoy import kingress

from tidegate.adapters.api import ApiError
from tidegate.adapters.sources import gateway as module
from tidegate.adapters.sources.gateway import Gateway, Where
from tidegate.core.rollout.counts import Ask, Reading, Requests
from tidegate.runtime.queue import Key

KEY = Key("shop", "churn")
ASK = Ask("shop", "churn", {"v1": "r1", "v2": "r2"})


@dataclass
class Pod:
    """An Envoy."""

    ready: bool = True
    container: str = "c1"
    uptime: int = 100
    counts: dict[str, tuple[int, int]] = field(default_factory=lambda: {"shop/r1": (0, 0), "shop/r2": (0, 0)})
    status: int = 200
    said: str | None = None

    def text(self) -> str:
        if self.said is not None:
            return self.said
        lines = [f"envoy_server_live{{}} 1\nenvoy_server_uptime{{}} {self.uptime}\n"]
        for name, (good, bad) in self.counts.items():
            label = f'envoy_cluster_name="{name}"'
            lines.append(f"envoy_cluster_membership_total{{{label}}} 1\n")
            for code, count in (("200", good), ("503", bad)):
                if count:
                    lines.append(f'envoy_cluster_upstream_rq{{envoy_response_code="{code}",{label}}} {count}\n')
            buckets = ("5", "+Inf") if good else ()
            lines += [f'envoy_cluster_upstream_rq_time_bucket{{{label},le="{edge}"}} {good}\n' for edge in buckets]
        return "".join(lines)


class World:
    """A cluster with a gateway: what the API server lists, and what Envoys answer."""

    def __init__(self) -> None:
        self.pods: dict[str, Pod] = {"p": Pod()}
        self.ingresses: list[dict[str, Any]] = [kingress("churn", "r1", "r2")]
        self.while_scraped: Callable[[], None] = lambda: None
        self.paths: list[str] = []
        self.denied = ""

    async def call(self, method: str, path: str, query: Any = None, accept: str = "", **_: Any) -> Any:
        assert method == "GET"
        self.paths.append(path)
        if self.denied and path.endswith(self.denied):
            raise ApiError(403, "not allowed")
        if path == "/api/v1/namespaces/kourier-system/pods":
            assert query == {"labelSelector": "app=3scale-kourier-gateway"}
            return {"items": [self.pod(name, pod) for name, pod in self.pods.items()]}
        if path.endswith("/ingresses"):
            whole = "PartialObjectMetadata" not in accept
            return {"items": [i if whole else {"metadata": i["metadata"]} for i in self.ingresses]}
        name = path.removeprefix("/api/v1/namespaces/kourier-system/pods/").removesuffix(":9000/proxy/stats/prometheus")
        assert "shop/r1" in query["filter"]
        self.while_scraped()
        if self.pods[name].status >= 400:
            raise ApiError(self.pods[name].status, "no endpoint")
        return self.pods[name].text()

    @staticmethod
    def pod(name: str, pod: Pod) -> dict[str, Any]:
        return {
            "metadata": {"name": name, "uid": f"uid-{name}"},
            "status": {
                "podIP": "127.0.0.1",
                "conditions": [{"type": "Ready", "status": "True" if pod.ready else "False"}],
                "containerStatuses": [{"containerID": pod.container}],
            },
        }


@pytest.fixture
def world() -> World:
    return World()


@pytest.fixture
async def gateway(world: World) -> AsyncIterator[Gateway]:
    async with aiohttp.ClientSession() as session:
        api: Any = world
        yield Gateway(api, session, Where(), direct=False)


async def look(gateway: Gateway) -> Reading[Requests]:
    return (await gateway.read({KEY: ASK}))[KEY]


async def test_pods_are_added_up(world: World, gateway: Gateway) -> None:
    world.pods = {
        "p": Pod(counts={"shop/r1": (7, 1), "shop/r2": (0, 0)}),
        "q": Pod(counts={"shop/r1": (2, 0), "shop/r2": (0, 3)}),
    }
    found = await look(gateway)
    assert found.trouble == ""
    assert {v: (c.requests, c.errors) for v, c in found.versions.items()} == {"v1": (10, 1), "v2": (3, 3)}
    assert found.versions["v1"].latency == {5.0: 9, float("inf"): 9}
    assert found.versions["v2"].latency == {5.0: 0, float("inf"): 0}, "those that Envoy made itself were not timed"


async def test_while_nothing_changes_a_look_lists_names_only(world: World, gateway: Gateway) -> None:
    first = await look(gateway)
    world.pods["p"].counts["shop/r1"] = (5, 0)
    second = await look(gateway)
    assert second.since(first) == {"v1": Requests(5), "v2": Requests()}
    asked: list[str] = []
    call = world.call

    async def counting(method: str, path: str, query: Any = None, accept: str = "", **more: Any) -> Any:
        if path.endswith("/ingresses"):
            asked.append(accept)
        return await call(method, path, query, accept, **more)

    world.call = counting  # type: ignore[method-assign]
    await look(gateway)
    assert len(asked) == 2
    assert all("PartialObjectMetadata" in accept for accept in asked)


def not_ready(world: World) -> None:
    world.ingresses = [kingress("churn", "r1", "r2", version="8", status="Unknown")]


def behind(world: World) -> None:
    world.ingresses = [kingress("churn", "r1", "r2", version="8", observed=2)]


def changes_meanwhile(world: World) -> None:
    def change() -> None:
        world.ingresses = [kingress("churn", "r1", "r2", version="8")]

    world.while_scraped = change


def another_meanwhile(world: World) -> None:
    def change() -> None:
        world.ingresses = [kingress("churn", "r1", "r2"), kingress("mine", "r1", uid="u2")]

    world.while_scraped = change


def restarts_meanwhile(world: World) -> None:
    world.while_scraped = lambda: setattr(world.pods["p"], "container", "c2")


def refuses(world: World) -> None:
    world.pods["q"] = Pod(status=503)


def garbage(world: World) -> None:
    world.pods["q"] = Pod(said="<html>\n")


def not_a_number(world: World) -> None:
    world.pods["q"] = Pod(said=Pod(counts={"shop/r1": (7, 0)}).text().replace("} 7", "} NaN"))


def says_nothing(world: World) -> None:
    world.pods["p"] = Pod(said="")


def nobody(world: World) -> None:
    world.pods["p"].ready = False


def ignorant(world: World) -> None:
    world.pods["q"] = Pod(counts={"shop/r1": (7, 0)})


def may_not(world: World) -> None:
    world.denied = "/ingresses"


@pytest.mark.parametrize(
    ("breaks", "told"),
    [
        (not_ready, "putting a change of churn into force"),
        (behind, "putting a change of churn into force"),
        (changes_meanwhile, "a change of the Route"),
        (another_meanwhile, "a change of the Route"),
        (restarts_meanwhile, "the gateway's pods are changing"),
        (refuses, "pod q, port 9000: 503"),
        (garbage, "pod q, port 9000: it answers with something"),
        (not_a_number, "pod q, port 9000: NaN is not a count"),
        (says_nothing, "pod p, port 9000: it answers with nothing"),
        (nobody, "no pod with the labels app=3scale-kourier-gateway is ready in namespace kourier-system"),
        (ignorant, "1 of 2 pods of the gateway do not know shop/r2 yet"),
        (may_not, "cannot be read: 403"),
    ],
)
async def test_what_cannot_be_relied_on_is_a_trouble_and_no_count(
    world: World, gateway: Gateway, breaks: Callable[[World], None], told: str
) -> None:
    assert (await look(gateway)).trouble == ""
    breaks(world)
    found = await look(gateway)
    assert told in found.trouble
    assert found.versions == {}


async def test_a_pod_that_gets_no_requests_need_not_answer(world: World, gateway: Gateway) -> None:
    world.pods["q"] = Pod(ready=False, status=503)
    assert (await look(gateway)).trouble == ""


async def test_pods_that_come_go_or_restart_make_other_counters(world: World, gateway: Gateway) -> None:
    marks = [(await look(gateway)).mark]
    world.pods["q"] = Pod()
    marks.append((await look(gateway)).mark)
    world.pods["q"].container = "c2"
    marks.append((await look(gateway)).mark)
    del world.pods["p"]
    marks.append((await look(gateway)).mark)
    assert len(set(marks)) == 4
    assert (await look(gateway)).mark == marks[-1]


@pytest.mark.parametrize("uptime", [3, 105])
async def test_a_restart_that_nobody_knows_of_yet_is_not_hidden_by_the_sum(
    world: World, gateway: Gateway, uptime: int
) -> None:
    world.pods = {
        "p": Pod(counts={"shop/r1": (50, 0), "shop/r2": (1, 0)}),
        "q": Pod(counts={"shop/r1": (10, 0), "shop/r2": (1, 0)}),
    }
    before = await look(gateway)
    world.pods["p"].counts = {"shop/r1": (90, 0), "shop/r2": (2, 0)}
    world.pods["q"] = Pod(counts={"shop/r1": (1, 0), "shop/r2": (1, 0)}, uptime=uptime)
    after = await look(gateway)
    assert after.versions["v1"].requests > before.versions["v1"].requests
    assert after.since(before) is None
    world.pods["q"].counts["shop/r1"] = (4, 0)
    assert (await look(gateway)).since(after) is not None, "and goes on from there"


async def test_probes_of_a_change_never_turn_up_in_the_times(world: World, gateway: Gateway) -> None:
    world.pods["p"].counts["shop/r1"] = (5, 0)
    whole = await look(gateway)
    assert whole.versions["v1"].latency
    world.ingresses[0]["metadata"]["resourceVersion"] = "8"
    world.ingresses[0]["status"]["conditions"][0]["lastTransitionTime"] = "2126-11-24T08:16:56Z"
    world.pods["p"].counts["shop/r1"] = (8, 0)
    new = await look(gateway)
    assert new.since(whole) is None, "probes may be among these"
    assert new.versions["v1"] == Requests(8, 0), "the counters have them already, the histogram may not"
    world.pods["p"].counts["shop/r1"] = (9, 0)
    assert (await look(gateway)).since(new) == {"v1": Requests(1), "v2": Requests()}
    world.pods["p"].uptime += 5
    merged = await look(gateway)
    world.pods["p"].counts["shop/r1"] = (12, 0)
    assert (await look(gateway)).since(merged) == {
        "v1": Requests(3, 0, {5.0: 3, float("inf"): 3}),
        "v2": Requests(0, 0, {5.0: 0, float("inf"): 0}),
    }


async def test_an_operator_that_starts_anew_goes_on_with_the_same_counters(world: World, gateway: Gateway) -> None:
    before = await look(gateway)
    world.pods["p"].counts["shop/r2"] = (3, 1)
    async with aiohttp.ClientSession() as session:
        api: Any = world
        after = await look(Gateway(api, session, Where(), direct=False))
    increments = after.since(before)
    assert increments is not None
    assert (increments["v2"].requests, increments["v2"].errors) == (4, 1)


async def test_a_pod_is_reached_by_its_address_from_within(world: World) -> None:
    asked: list[Any] = []

    async def stats(request: web.Request) -> web.Response:
        asked.append(request.query)
        if request.query["filter"].startswith("^server"):
            return web.Response(text=world.pods["p"].text())
        return web.Response(status=400)

    app = web.Application()
    app.add_routes([web.get("/stats/prometheus", stats)])
    runner = web.AppRunner(app)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    port = runner.addresses[0][1]
    api: Any = world
    try:
        async with aiohttp.ClientSession() as session:
            direct = Gateway(api, session, Where(port=port), direct=True)
            assert (await look(direct)).trouble == ""
            assert "usedonly" in asked[0]
            assert r"^cluster\.(shop/r1|shop/r2)\." in asked[0]["filter"]
    finally:
        await runner.cleanup()
    async with aiohttp.ClientSession() as session:
        gone = await look(Gateway(api, session, Where(port=port), direct=True))
    assert f"pod p, port {port}: " in gone.trouble
    assert "NetworkPolicy" in gone.trouble


async def test_a_pod_that_hangs_holds_nothing_up(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "PATIENCE", 0.02)

    async def hang(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()
        writer.close()

    server = await asyncio.start_server(hang, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    api: Any = world
    async with server, aiohttp.ClientSession() as session:
        found = await look(Gateway(api, session, Where(port=port), direct=True))
    assert "no answer in time" in found.trouble
