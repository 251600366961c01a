"""Looks at the sources, one after another on a steady grid, and what is kept of them."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any

import aiohttp
import pytest
from test_sources_prometheus import answering

from tidegate.adapters.sources import sampler as module
from tidegate.adapters.sources.feedback import Feedback
from tidegate.adapters.sources.prometheus import NoValue
from tidegate.adapters.sources.sampler import Sampler
from tidegate.core.rollout.counts import Ask, Reading, Requests, Rewards
from tidegate.runtime.queue import Key

A, B = Key("shop", "a"), Key("shop", "b")


class Sources:
    """All sources in one, as the test wants them."""

    def __init__(self) -> None:
        self.asks: dict[Key, Ask] = {A: Ask("shop", "a", {"v1": "r1"}), B: Ask("shop", "b", {"v1": "r2"})}
        self.numbers: dict[str, float] = {}
        self.together = self.most = 0
        self.looks: list[set[Key]] = []
        self.changed: list[Key] = []
        self.took: list[bool] = []
        self.trouble = ""
        self.sampler = Sampler(
            Counted(self), Rewarded(), self, lambda: self.asks, self.changed.append, lambda _, ok: self.took.append(ok)
        )

    async def value(self, promql: str) -> float:
        self.together += 1
        self.most = max(self.most, self.together)
        await asyncio.sleep(0)
        self.together -= 1
        if promql == "never":
            await asyncio.Event().wait()
        if promql not in self.numbers:
            raise NoValue(f"no {promql}")
        return self.numbers[promql]


class Counted:
    def __init__(self, sources: Sources) -> None:
        self._sources = sources

    async def read(self, asks: Mapping[Key, Ask]) -> dict[Key, Reading[Requests]]:
        self._sources.looks.append(set(asks))
        n = len(self._sources.looks)
        return {key: Reading(float(n), {"v1": Requests(n)}, "m", self._sources.trouble) for key in asks}


class Rewarded:
    async def read(self, ask: Ask) -> Reading[Rewards]:
        return Reading(1.0, {"v1": Rewards(1, 0.5, 0.25)}, "f")


@pytest.fixture
async def sources() -> Sources:
    return Sources()


async def test_one_look_for_all_of_them(sources: Sources) -> None:
    assert sources.sampler.latest(A) is None
    await sources.sampler.look()
    assert sources.looks == [{A, B}]
    assert sources.changed == [A, B]
    assert sources.took == [True]
    found = sources.sampler.latest(A)
    assert found is not None
    assert found.requests.versions == {"v1": Requests(1)}
    assert found.rewards is None


async def test_nothing_is_read_while_nothing_is_judged_and_nothing_kept_of_what_no_longer_is(sources: Sources) -> None:
    await sources.sampler.look()
    del sources.asks[A]
    await sources.sampler.look()
    assert sources.sampler.latest(A) is None
    sources.asks.clear()
    await sources.sampler.look()
    assert sources.looks == [{A, B}, {B}]


async def test_a_source_that_fails_leaves_the_others_alone(sources: Sources, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "BUDGET", 0.02)
    sources.trouble = "the gateway is away"
    sources.numbers = {"drift": 0.2}
    queries = {"known": "drift", "unknown": "nothing", "slow": "never"}
    sources.asks = {A: Ask("shop", "a", {"v1": "r1"}, rewards=True, queries=queries)}
    await sources.sampler.look()
    found = sources.sampler.latest(A)
    assert found is not None
    assert found.requests.trouble == "the gateway is away"
    assert found.rewards is not None
    assert found.rewards.versions == {"v1": Rewards(1, 0.5, 0.25)}
    assert found.values == {"known": 0.2}
    assert found.troubles.keys() == {"unknown", "slow"}
    assert found.troubles["unknown"] == "no nothing"
    assert "in time" in found.troubles["slow"]
    assert sources.took == [False]


async def test_a_sample_is_never_older_than_the_one_before(sources: Sources) -> None:
    await sources.sampler.look()
    first = sources.sampler.latest(A)
    await sources.sampler.look()
    second = sources.sampler.latest(A)
    assert first is not None
    assert second is not None
    assert second.t > first.t > 1e9, "its own time, not that of the counts"


async def test_looks_follow_each_other_on_the_grid(sources: Sources, monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]
    waits: list[float] = []
    reached = asyncio.Event()

    async def sleep(seconds: float) -> None:
        waits.append(seconds)
        now[0] += seconds
        if len(waits) == 4:
            reached.set()
            await asyncio.Event().wait()

    class Loop:
        @staticmethod
        def time() -> float:
            return now[0]

    looked = sources.sampler.look

    async def look() -> None:
        now[0] += 7.0 if len(waits) == 2 else 1.0  # the third look is slow
        await looked()

    monkeypatch.setattr(sources.sampler, "look", look)
    with monkeypatch.context() as patched:
        patched.setattr(asyncio, "get_running_loop", lambda: Loop)
        patched.setattr(asyncio, "sleep", sleep)
        task = asyncio.ensure_future(sources.sampler.run())
        await reached.wait()
    task.cancel()
    assert waits == [4.0, 4.0, 0.0, 4.0]


# --- rewards ----------------------------------------------------------------------------------------------------------


ASK = Ask("shop", "a", {"v1": "r1", "v2": "r2"}, rewards=True)


async def rewards(answer: Any) -> Reading[Rewards]:
    async with aiohttp.ClientSession() as session, answering(lambda _: answer, path="/v1/totals", method="GET") as url:
        return await Feedback(session, url).read(ASK)


async def test_rewards_of_the_versions_that_are_asked_for() -> None:
    told = {"count": 3, "sum": 1.5, "sumsq": 1.25}
    found = await rewards({"mark": "abc", "versions": {"v1": told, "v9": told}})
    assert found.trouble == ""
    assert found.mark == "abc"
    assert found.versions == {"v1": Rewards(3, 1.5, 1.25), "v2": Rewards()}


@pytest.mark.parametrize(
    "answer",
    [
        {"versions": {}},
        {"mark": "abc"},
        {"mark": "abc", "versions": {"v1": {"count": -1, "sum": 0, "sumsq": 0}}},
        {"mark": "abc", "versions": {"v1": {"count": 1, "sum": float("nan"), "sumsq": 0}}},
        {"mark": "abc", "versions": {"v1": {"count": 1, "sum": 1}}},
        {"mark": "abc", "versions": []},
        [],
    ],
)
async def test_what_are_no_totals_is_a_trouble_and_no_reward(answer: Any) -> None:
    found = await rewards(answer)
    assert "not its totals" in found.trouble
    assert found.versions == {}


async def test_no_service_is_said() -> None:
    async with aiohttp.ClientSession() as session:
        assert "feedback.enabled" in (await Feedback(session, "").read(ASK)).trouble
        assert "cannot be read" in (await Feedback(session, "http://127.0.0.1:1").read(ASK)).trouble
