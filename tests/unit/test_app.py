"""The process around the passes: Events, the lease, health."""

from __future__ import annotations

import asyncio
import logging
from typing import Any, cast

import aiohttp
import pytest
from kubernetes.aio.client import V1Lease, V1LeaseSpec, V1ObjectMeta
from kubernetes.aio.leaderelection import electionconfig, leaderelection

from tidegate.adapters import app
from tidegate.adapters.api import Api, ApiError
from tidegate.adapters.pods import Pods
from tidegate.adapters.watch import Child, Watch
from tidegate.core.events import Event
from tidegate.runtime.queue import Key, KeyQueue
from tidegate.runtime.write import Conflict
from virtual import play


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (Conflict("there is one"), ""),
        (ApiError(403, "the namespace is being terminated"), "403: the namespace is being terminated"),
        (aiohttp.ClientConnectionError("refused"), "refused"),
        (TimeoutError(), "no answer in time"),
    ],
)
def test_an_event_that_cannot_be_recorded_ends_nothing(
    error: Exception, told: str, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def call(*_: Any, **__: Any) -> None:
        raise error

    api = Api(cast(Any, None))
    monkeypatch.setattr(api, "call", call)
    about = {"apiVersion": "v1", "kind": "K", "metadata": {"name": "churn", "namespace": "shop", "uid": "u"}}
    with caplog.at_level(logging.WARNING):
        asyncio.run(api.announce(about, Event("Normal", "Promoted", "it went well")))
    assert caplog.text == "" if not told else told in caplog.text


class Leases:
    """As much of the API as the lease needs. What is in `trouble` happens to each call instead of an answer."""

    def __init__(self) -> None:
        self.trouble: BaseException | float | None = None
        self.renewals = 0

    async def _answer(self) -> None:
        if isinstance(self.trouble, BaseException):
            raise self.trouble
        if self.trouble:
            await asyncio.sleep(self.trouble)

    async def read_namespaced_lease(self, name: str, namespace: str) -> V1Lease:
        await self._answer()
        return V1Lease(metadata=V1ObjectMeta(name=name), spec=V1LeaseSpec())

    async def replace_namespaced_lease(self, name: str, namespace: str, body: V1Lease) -> None:
        await self._answer()
        self.renewals += 1


def electing(leases: Leases) -> tuple[app.Lock, leaderelection.LeaderElection]:
    lock = app.Lock("lease", "shop", "me", cast(Any, None))
    lock.api_instance = cast(Any, leases)

    async def nothing() -> None:
        pass

    timing = {"lease_duration": 15, "renew_deadline": 10, "retry_period": 2}
    config = electionconfig.Config(lock, **timing, onstarted_leading=nothing, onstopped_leading=nothing)
    return lock, leaderelection.LeaderElection(config)


@pytest.mark.parametrize(
    "trouble", [aiohttp.ClientConnectionError("refused"), TimeoutError(), OSError("reset"), 3600.0]
)
def test_a_call_about_the_lease_that_gets_no_answer_is_a_failed_try(trouble: Any) -> None:
    leases = Leases()

    async def story() -> None:
        lock, election = electing(leases)
        leases.trouble = trouble
        assert not await election.try_acquire_or_renew()
        assert asyncio.get_running_loop().time() <= app.LEASE_TRY
        leases.trouble = None
        assert await election.try_acquire_or_renew()
        leases.trouble = trouble
        record: Any = election.observed_record
        assert not await lock.update("lease", "shop", record)

    play(story())
    assert leases.renewals == 1


def test_a_lease_that_is_not_renewed_lapses_before_another_may_take_it() -> None:
    leases = Leases()

    async def story() -> None:
        lock, election = electing(leases)
        await asyncio.sleep(100)
        assert await election.try_acquire_or_renew()
        lapsing = asyncio.create_task(lock.lapsed())
        await asyncio.sleep(10)
        assert await election.try_acquire_or_renew()
        leases.trouble = 4.0
        await lapsing
        assert asyncio.get_running_loop().time() == pytest.approx(110 + app.LEASE_HELD)

    play(story())


def watching() -> tuple[Watch, app.Health]:
    api, queue = cast(Any, None), KeyQueue(clock=lambda: 0.0)
    pods = Pods(api, lambda key: None)
    watch = Watch(api, queue, pods)
    return watch, app.Health(watch, queue, pods)


def test_a_child_that_only_the_watches_show_twice_is_a_fault() -> None:
    _, health = watching()
    ghost, other = (Child("revisions", "shop", name, f"uid-{name}") for name in ("churn-1", "churn-2"))
    for gone in ({ghost}, {other}, set(), {ghost}):
        health.compare(set(), gone)
        assert health.fault() == ""
    health.compare(set(), {ghost, other})
    assert health.fault() == "the watches still tell of revisions shop/churn-1"


def test_a_parent_that_the_watches_do_not_show_twice_is_a_fault() -> None:
    _, health = watching()
    health.compare({Key("shop", "churn")}, set())
    assert health.fault() == ""
    health.compare({Key("shop", "churn")}, set())
    assert health.fault() == "the watches do not tell of shop/churn"


def test_unready_until_all_is_known_which_is_a_fault_after_a_while() -> None:
    watch, health = watching()
    assert health.unready()
    assert health.fault() == ""
    health._begun -= app.STUCK + 1
    assert health.fault() == "the watches have not yet told what there is, after 300 s"
    watch.listening.set()
    assert health.fault() == "pods have not yet been listed, after 300 s"
    health._pods.listed.set()
    assert health.unready() == health.fault() == ""


def test_children_are_listed_by_their_metadata_and_a_kind_that_is_not_installed_has_none() -> None:
    class Lists:
        async def call(self, method: str, path: str, *, accept: str) -> Any:
            assert (method, accept) == ("GET", app.METADATA)
            if "kserve" in path:
                raise ApiError(404, "not found")
            *_, namespace, plural = path.split("/")
            if plural == "revisions":
                return {"items": None}  # so says the API server of no CRs where only metadata are asked for
            return {"items": [{"metadata": {"namespace": namespace, "name": plural, "uid": "u"}}]}

    found = asyncio.run(app._list_children(cast(Any, Lists()), ("a", "b")))
    assert found == {
        Child(plural, space, plural, "u") for plural in ("modelversions", "configurations") for space in ("a", "b")
    }
