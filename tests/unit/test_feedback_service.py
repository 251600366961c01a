"""The feedback service over HTTP, in this process, with a real store in a folder."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import json
import os
import threading
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from aiohttp.test_utils import TestClient, TestServer
from prometheus_client.parser import text_string_to_metric_families

from tidegate.feedback import journal as journal_module
from tidegate.feedback import service as module
from tidegate.feedback.journal import Journal
from tidegate.feedback.limits import Limits
from tidegate.feedback.service import Service
from tidegate.feedback.store import Store

LIMITS = Limits(deployments=2, versions=2, body=2000, batch=4, in_flight=4000)
GOOD = {"deployment": "shop/churn", "version": "v2-1a2b3c4d", "reward": 0.25}
TOTALS = "/v1/totals?namespace=shop&deployment=churn"

Client = TestClient[Any, Any]


class Running:
    """A service and a client of it."""

    def __init__(self, folder: Path, compact_at: int = 1 << 20, now: float = 1e9) -> None:
        self.journal = Journal(folder, LIMITS)
        self.now = now
        self.store = Store(self.journal, compact_at, lambda: self.now)
        self.service = Service(self.store, LIMITS)
        self.client: Client = TestClient(TestServer(self.service.app()))

    async def __aenter__(self) -> Running:
        await self.client.start_server()
        self.writing = asyncio.create_task(self.store.run())
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.client.close()
        self.writing.cancel()
        await asyncio.wait({self.writing})
        self.journal.close()

    async def post(self, content: Any, **how: Any) -> tuple[int, Any]:
        async with self.client.post("/v1/feedback", json=content, **how) as answer:
            return answer.status, await answer.json()

    async def get(self, path: str = TOTALS) -> Any:
        async with self.client.get(path) as answer:
            return await answer.json()

    async def metrics(self) -> dict[tuple[str, ...], float]:
        async with self.client.get("/metrics") as answer:
            families = list(text_string_to_metric_families(await answer.text()))
        return {
            (s.name, *(s.labels[name] for name in sorted(s.labels))): s.value
            for family in families
            for s in family.samples
        }


async def until(condition: Callable[[], bool]) -> None:
    """Lets the others go on until it is so."""
    while not condition():  # noqa: ASYNC110
        await asyncio.sleep(0)


@pytest.fixture
async def running(tmp_path: Path) -> AsyncIterator[Running]:
    async with Running(tmp_path) as found:
        yield found


# --- what is taken ----------------------------------------------------------------------------------------------------


async def test_reward_is_counted_and_read_back(running: Running) -> None:
    assert await running.post(GOOD) == (200, {"status": "credited"})
    assert await running.post({**GOOD, "reward": 1}) == (200, {"status": "credited"})
    assert await running.get() == {
        "mark": running.journal.totals.mark,
        "versions": {"v2-1a2b3c4d": {"count": 2, "sum": 1.25, "sumsq": 1.0625}},
    }
    assert (await running.get("/v1/totals?namespace=shop&deployment=other"))["versions"] == {}


async def test_same_id_counts_once(running: Running) -> None:
    assert await running.post({**GOOD, "id": "a"}) == (200, {"status": "credited"})
    assert await running.post({**GOOD, "id": "a", "reward": 1}) == (200, {"status": "duplicate"})
    assert (await running.get())["versions"]["v2-1a2b3c4d"] == {"count": 1, "sum": 0.25, "sumsq": 0.0625}


async def test_same_id_at_the_same_time_counts_once(running: Running) -> None:
    told = await asyncio.gather(*(running.post({**GOOD, "id": "a"}) for _ in range(10)))
    assert sorted(content["status"] for _, content in told) == ["credited", *["duplicate"] * 9]


async def test_batch_tells_of_each_item(running: Running) -> None:
    status, told = await running.post({"items": [{**GOOD, "id": "a"}, {**GOOD, "id": "a"}, {**GOOD, "reward": 2}]})
    assert status == 207
    assert [result["status"] for result in told["results"]] == ["credited", "duplicate", "refused"]
    assert (told["credited"], told["duplicates"], told["refused"]) == (1, 1, 1)
    assert "from 0 to 1" in told["results"][2]["error"]


@pytest.mark.parametrize(
    ("items", "status"), [([GOOD, GOOD], 200), ([{**GOOD, "reward": 2}], 400)], ids=["good", "bad"]
)
async def test_batch_of_one_kind_has_its_status(running: Running, items: list[Any], status: int) -> None:
    assert (await running.post({"items": items}))[0] == status


async def test_late_reward_goes_to_the_version_that_served(running: Running) -> None:
    """The service knows no weights: nothing about traffic could move a reward elsewhere."""
    await running.post({**GOOD, "version": "v1-00000001"})
    await running.post(GOOD)
    running.now += 20 * 86_400
    await running.post({**GOOD, "version": "v1-00000001"})
    versions = (await running.get())["versions"]
    assert {name: counter["count"] for name, counter in versions.items()} == {"v1-00000001": 2, "v2-1a2b3c4d": 1}


async def test_too_many_versions_or_deployments(running: Running) -> None:
    for number in (1, 2):
        assert (await running.post({**GOOD, "version": f"v{number}-00000000"}))[0] == 200
    status, told = await running.post({**GOOD, "version": "v3-00000000"})
    assert (status, "--max-versions" in told["error"]) == (422, True)
    assert (await running.post({**GOOD, "deployment": "shop/other"}))[0] == 200
    status, told = await running.post({**GOOD, "deployment": "shop/third"})
    assert (status, "--max-deployments" in told["error"]) == (422, True)


# --- what is not ------------------------------------------------------------------------------------------------------

JSON = {"Content-Type": "application/json"}


@pytest.mark.parametrize(
    ("method", "path", "headers", "body", "status", "told"),
    [
        ("POST", "/v1/feedback", JSON, b"{", 400, "not JSON"),
        ("POST", "/v1/feedback", JSON, json.dumps({**GOOD, "reward": True}).encode(), 400, "a number from 0 to 1"),
        ("POST", "/v1/feedback", {}, b"{}", 415, "Content-Type: application/json"),
        ("POST", "/v1/feedback", {"Content-Type": "text/plain"}, b"{}", 415, "Content-Type: application/json"),
        ("POST", "/v1/feedback", JSON | {"Content-Encoding": "gzip"}, b"{}", 415, "without Content-Encoding"),
        ("POST", "/v1/feedback", JSON, b" " * 2001, 413, "at most 2000 bytes"),
        ("GET", "/v1/feedback", {}, b"", 405, "use POST"),
        ("POST", "/v1/totals", JSON, b"{}", 405, "use GET"),
        ("GET", "/v1/feedbacks", {}, b"", 404, "POST /v1/feedback, GET /v1/totals"),
        ("GET", "/v1/totals", {}, b"", 400, "give both"),
        ("GET", "/v1/totals?namespace=shop", {}, b"", 400, "give both"),
        ("GET", TOTALS + "&version=v1", {}, b"", 400, "no parameter 'version'"),
    ],
    ids=lambda value: str(value)[:40],
)
async def test_wrong_request_is_told_what_to_do(
    running: Running, method: str, path: str, headers: dict[str, str], body: bytes, status: int, told: str
) -> None:
    async with running.client.request(
        method, path, headers=headers, data=body, skip_auto_headers=["Content-Type"]
    ) as got:
        assert (got.status, got.content_type) == (status, "application/json")
        assert told in (await got.json())["error"]
    assert list(running.journal.totals) == []


async def test_body_of_unknown_length_is_cut_off_at_the_limit(running: Running) -> None:
    async def endless() -> AsyncIterator[bytes]:
        for _ in range(100):
            yield b" " * 1000

    async with running.client.post("/v1/feedback", data=endless(), headers=JSON) as answer:
        assert answer.status == 413


async def test_slow_body_is_not_waited_for(running: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "BODY_SECONDS", 0.05)
    reader, writer = await asyncio.open_connection("127.0.0.1", running.client.port)
    writer.write(
        b"POST /v1/feedback HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\nContent-Length: 9\r\n\r\n{"
    )
    assert (await reader.readline()).startswith(b"HTTP/1.1 408")
    writer.close()
    await writer.wait_closed()


async def test_more_at_a_time_than_memory_is_for_is_sent_away(running: Running) -> None:
    """Two requests announce all that is allowed and stand; a third one does not fit."""
    head = b"POST /v1/feedback HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\nContent-Length: 2000\r\n\r\n"
    standing = [await asyncio.open_connection("127.0.0.1", running.client.port) for _ in range(2)]
    for _, writer in standing:
        writer.write(head)
    await until(lambda: running.service._in_flight == 4000)
    async with running.client.post("/v1/feedback", json=GOOD) as answer:
        assert (answer.status, answer.headers["Retry-After"]) == (503, "1")
    for _, writer in standing:
        writer.close()
        await writer.wait_closed()
    await until(lambda: running.service._in_flight == 0)
    assert (await running.post(GOOD))[0] == 200


# --- durable before acknowledged --------------------------------------------------------------------------------------


async def test_nobody_is_told_before_the_disk_is_done(running: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    begun, go, syncs = threading.Event(), threading.Event(), []

    def slow(file: int) -> None:
        syncs.append(file)
        begun.set()
        assert go.wait(30)

    monkeypatch.setattr(journal_module.os, "fdatasync", slow)
    first = asyncio.create_task(running.post(GOOD))
    await asyncio.to_thread(begun.wait, 30)
    others = [asyncio.create_task(running.post(GOOD)) for _ in range(20)]
    await until(lambda: len(running.store._waiting) == 20)
    assert not first.done()
    assert (await running.get())["versions"] == {}, "nor does anybody read it"
    go.set()
    assert {status for status, _ in await asyncio.gather(first, *others)} == {200}
    assert len(syncs) == 2, "those that came meanwhile went together"
    assert (await running.get())["versions"]["v2-1a2b3c4d"]["count"] == 21


async def test_full_disk_is_told_and_gets_over_it(running: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(journal_module, "_write", no_space)
        async with running.client.post("/v1/feedback", json={**GOOD, "id": "a"}) as answer:
            assert (answer.status, answer.headers["Retry-After"]) == (503, "30")
            assert "with the same id" in (await answer.json())["error"]
        assert (await running.get())["versions"] == {}
    assert await running.post({**GOOD, "id": "a"}) == (200, {"status": "credited"})


def no_space(file: int, content: bytes) -> None:
    raise OSError(errno.ENOSPC, "No space left on device")


async def test_failing_disk_ends_the_store_and_nobody_waits_for_ever(
    running: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(file: int) -> None:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(journal_module.os, "fdatasync", broken)
    assert (await running.post(GOOD))[0] == 503
    with pytest.raises(OSError, match="Input/output error"):
        await running.writing
    assert (await running.post(GOOD))[0] == 503


async def test_counters_and_mark_outlive_the_process(tmp_path: Path) -> None:
    async with Running(tmp_path, compact_at=500) as before:
        for number in range(30):
            await before.post({**GOOD, "id": str(number)})
        expected = await before.get()
    assert "log-00000001" not in os.listdir(tmp_path), "snapshots were taken on the way"
    async with Running(tmp_path) as after:
        assert await after.get() == expected
        assert expected["versions"]["v2-1a2b3c4d"]["count"] == 30
        assert (await after.post({**GOOD, "id": "3"}))[1] == {"status": "duplicate"}


# --- itself -----------------------------------------------------------------------------------------------------------


async def test_metrics_are_bounded_and_tell_what_happened(running: Running) -> None:
    await running.post(GOOD)
    await running.post({**GOOD, "reward": 2})
    for path in ("/a", "/b", "/c"):
        async with running.client.get(path):
            pass
    told = await running.metrics()
    assert told["tidegate_feedback_requests_total", "200", "/v1/feedback"] == 1
    assert told["tidegate_feedback_requests_total", "404", "other"] == 3
    assert told["tidegate_feedback_items_total", "credited"] == 1
    assert told["tidegate_feedback_items_total", "refused"] == 1
    assert told["tidegate_feedback_rewards_total", "shop", "churn", "v2-1a2b3c4d"] == 1
    assert told["tidegate_feedback_rewards_sum_total", "shop", "churn", "v2-1a2b3c4d"] == 0.25
    assert told["tidegate_feedback_commit_duration_seconds_count",] == 1
    assert told["tidegate_feedback_log_bytes",] == running.journal.size


async def test_draining_answers_and_says_goodbye(running: Running) -> None:
    async with running.client.get("/readyz") as answer:
        assert answer.status == 200
    running.service.draining = True
    async with running.client.get("/readyz") as answer:
        assert answer.status == 503
    async with running.client.post("/v1/feedback", json=GOOD) as answer:
        assert (answer.status, answer.headers["Connection"]) == (200, "close")
    async with running.client.get("/healthz") as answer:
        assert answer.status == 200


async def test_run_serves_until_it_is_told_to_stop(tmp_path: Path, unused_tcp_port: int) -> None:
    stop = asyncio.Event()
    options = module.Options(tmp_path, unused_tcp_port, "127.0.0.1", LIMITS, drain=0)
    serving = asyncio.create_task(module.run(options, stop))
    async with aiohttp.ClientSession(f"http://127.0.0.1:{unused_tcp_port}") as client:
        status = 0
        while status != 200:
            assert not serving.done()
            with contextlib.suppress(aiohttp.ClientConnectionError):
                async with client.post("/v1/feedback", json=GOOD) as answer:
                    status = answer.status
    stop.set()
    await serving
    with Journal(tmp_path, LIMITS) as journal:
        assert [len(versions) for _, versions in journal.totals] == [1]


async def test_run_ends_with_the_error_of_a_disk_that_fails(
    tmp_path: Path, unused_tcp_port: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = module.Options(tmp_path, unused_tcp_port, "127.0.0.1", LIMITS, drain=0)
    serving = asyncio.create_task(module.run(options, asyncio.Event()))
    monkeypatch.setattr(
        journal_module, "_write", lambda *_: (_ for _ in ()).throw(OSError(errno.EIO, "Input/output error"))
    )
    async with aiohttp.ClientSession(f"http://127.0.0.1:{unused_tcp_port}") as client:
        while not serving.done():
            with contextlib.suppress(aiohttp.ClientConnectionError):
                async with client.post("/v1/feedback", json=GOOD) as answer:
                    assert answer.status == 503
    with pytest.raises(OSError, match="Input/output error"):
        await serving
