"""The ledger on disk: whole lines, bounds, what happens where it cannot be written, and how one gets at it."""

from __future__ import annotations

import asyncio
import errno
import logging
import os
import socket
import threading
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, cast

import aiohttp
import pytest
from click.testing import CliRunner

from tidegate.adapters import app
from tidegate.adapters import ledger as adapter
from tidegate.adapters.api import ApiError
from tidegate.adapters.ledger import Files, Limits
from tidegate.adapters.telemetry import Metrics
from tidegate.cli import main
from tidegate.core.rollout.ledger import Entry, chains, entry, text
from tidegate.replay.ledger import parse, read, replay
from tidegate.runtime.queue import KeyQueue
from world import World, container

CHURN = {"metadata": {"namespace": "shop", "name": "churn", "uid": "uid-1"}}


def lines(count: int, *, size: int = 0, settings: str = "a", prev: str = "") -> list[Entry]:
    """Lines that build on each other."""
    found: list[Entry] = []
    for number in range(count):
        before = found[-1].line["id"] if found else prev
        content = {"n": number, "decision": {"reason": "x" * size}}
        found.append(entry("rollout", {}, before, content, settings={"is": settings}, state={}))
    return found


def write(files: Files, entries: Sequence[Entry], about: Any = CHURN) -> None:
    async def each() -> None:
        for one in entries:
            await files.write(about, [one])

    asyncio.run(each())


def kinds(path: Path) -> list[str]:
    return ["start" if '"kind":"start"' in line else "line" for line in path.read_text().splitlines()]


def at(folder: Path, uid: str = "uid-1", name: str = "churn") -> Path:
    return folder / "shop" / f"{name}.{uid}.jsonl"


def test_a_rollout_of_the_operator_is_on_disk_as_it_was_decided(tmp_path: Path) -> None:
    world = World()
    world.submit(container("v1"))
    operator = world.run(30)
    world.submit(container("v2"))
    world.run(600, operator)
    pairs = zip(world.ledger[::2], world.ledger[1::2], strict=True)
    write(Files(tmp_path), [Entry(line, start) for start, line in pairs])
    (chain,) = read(at(tmp_path)).rollouts
    assert list(chain.lines) == list(chains(world.ledger)[0].lines)
    assert kinds(at(tmp_path)).count("start") == 1, "the settings once"
    outcome = replay(chain)
    assert (outcome.differs, outcome.replayed) == ("", len(chain.lines))


def test_what_went_before_is_told_where_the_file_does_not_have_it(tmp_path: Path) -> None:
    first, second, third, fourth = lines(4)
    write(Files(tmp_path), [first, second])
    assert kinds(at(tmp_path)) == ["start", "line", "line"]
    files = Files(tmp_path)  # the operator was restarted, and does not know what the file ends with
    write(files, [third, fourth])
    assert kinds(at(tmp_path))[3:] == ["start", "line", "line"]
    (changed,) = lines(1, settings="b", prev=fourth.line["id"])
    write(files, [changed])
    assert kinds(at(tmp_path))[6:] == ["start", "line"]
    (missed, later) = lines(2, settings="b", prev=changed.line["id"])
    write(files, [later])  # somebody else wrote the one before
    assert kinds(at(tmp_path))[8:] == ["start", "line"]
    assert missed.line["id"] == later.line["prev"]


def test_a_file_that_is_full_is_kept_and_another_begins_and_the_one_before_goes(tmp_path: Path) -> None:
    files = Files(tmp_path, Limits(file=10_000))
    entries = lines(60, size=800)
    write(files, entries)
    now, before = at(tmp_path), at(tmp_path).with_name("churn.uid-1.jsonl.1")
    assert sorted(path.name for path in now.parent.iterdir()) == [now.name, before.name]
    assert now.stat().st_size <= 10_000 < before.stat().st_size < 12_000
    assert kinds(now)[0] == kinds(before)[0] == "start"
    content = (before.read_bytes() + now.read_bytes()).splitlines()
    kept = [line for line in content if b'"kind":"start"' not in line]
    assert kept == [text(each.line).encode() for each in entries[-len(kept) :]]


def test_all_files_together_are_bounded_and_the_oldest_go(tmp_path: Path) -> None:
    limits = Limits(total=200_000, file=20_000)
    files = Files(tmp_path, limits)
    for number in range(100):
        write(files, lines(1, size=4000), {"metadata": {**CHURN["metadata"], "uid": f"u-{number}"}})
        os.utime(at(tmp_path, f"u-{number}"), (number, number))
        assert sum(path.stat().st_blocks * 512 for path in tmp_path.glob("*/*")) <= limits.total
    left = {path.name for path in (tmp_path / "shop").iterdir()}
    assert len(left) > 15
    assert left == {f"churn.u-{number}.jsonl" for number in range(100 - len(left), 100)}
    again = Files(tmp_path, Limits(total=50_000, file=20_000))  # with less room after a restart
    write(again, lines(1, size=4000))
    assert sum(path.stat().st_blocks * 512 for path in tmp_path.glob("*/*")) <= 50_000
    assert at(tmp_path).exists()


def test_a_line_that_was_cut_off_stays_one_line(tmp_path: Path) -> None:
    first, second = lines(2)
    write(Files(tmp_path), [first])
    at(tmp_path).write_bytes(at(tmp_path).read_bytes()[:-10])
    write(Files(tmp_path), [second])
    *_, cut, start, last = at(tmp_path).read_text().splitlines()
    assert text(first.line).startswith(cut)
    assert (start, last) == (text(second.start), text(second.line))


class Counted:
    def __init__(self) -> None:
        self.written = self.lost = 0

    def __call__(self, written: int, lost: int) -> None:
        self.written += written
        self.lost += lost


def test_a_full_disk_loses_lines_says_so_once_and_nothing_else_happens(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    counted = Counted()
    files, entries = Files(tmp_path, told=counted), lines(6)
    write(files, entries[:2])
    whole, real = at(tmp_path).read_bytes(), os.write
    room = 30

    def full(handle: int, content: bytes) -> int:
        nonlocal room
        if not room:
            raise OSError(errno.ENOSPC, "No space left on device")
        done = real(handle, content[:room])
        room -= done
        return done

    monkeypatch.setattr(os, "write", full)
    write(files, entries[2:4])
    assert at(tmp_path).read_bytes() == whole, "a line that is half there is taken back"
    assert caplog.text.count("No space left on device") == 1
    assert "rollouts go on" in caplog.text
    monkeypatch.undo()
    write(files, entries[4:])
    assert "is kept again" in caplog.text
    assert (counted.written, counted.lost) == (4, 2)
    assert kinds(at(tmp_path)) == ["start", "line", "line", "start", "line", "line"]


def test_a_folder_that_cannot_be_made_is_no_error(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "file").write_text("")
    counted = Counted()
    write(Files(tmp_path / "file", told=counted), lines(3))
    assert (counted.written, counted.lost) == (0, 3)
    assert caplog.text.count("is not kept") == 1


def test_a_disk_that_does_not_answer_holds_nobody_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(adapter, "PATIENCE", 0.1)
    gate, real = threading.Event(), adapter._append

    def slow(path: Path, content: bytes) -> int:
        gate.wait()
        return real(path, content)

    monkeypatch.setattr(adapter, "_append", slow)
    counted = Counted()
    files, entries = Files(tmp_path, told=counted), lines(40)

    async def story() -> None:
        loop = asyncio.get_running_loop()
        begun = loop.time()
        for one in entries[:30]:
            await files.write(CHURN, [one])
        assert loop.time() - begun < 1.0, "it waits for the first only"
        gate.set()
        assert files._stuck
        await files._stuck
        await asyncio.gather(*(files.write(CHURN, [one]) for one in entries[30:]))

    asyncio.run(story())
    assert (counted.written, counted.lost) == (10, 30)
    assert caplog.text.count("is not kept") == 1
    assert len(at(tmp_path).read_text().splitlines()) == 2 + 1 + 10, "the one that was late, then the others"


@pytest.mark.parametrize(
    "metadata",
    [
        {"namespace": "..", "name": "churn", "uid": "u"},
        {"namespace": "shop", "name": "../../etc/churn", "uid": "u"},
        {"namespace": "shop", "name": "churn", "uid": "../u"},
        {"namespace": "", "name": "churn", "uid": "u"},
    ],
)
def test_names_that_lead_elsewhere_make_no_file(tmp_path: Path, metadata: dict[str, str]) -> None:
    counted = Counted()
    write(Files(tmp_path / "ledger", told=counted), lines(1), {"metadata": metadata})
    assert counted.lost == 1
    assert list(tmp_path.rglob("*")) == []


# --- getting at it ---


@asynccontextmanager
async def serving(ledger: Files | None) -> AsyncIterator[str]:
    with socket.socket() as probe:
        probe.bind(("", 0))
        port = probe.getsockname()[1]
    async with app._serving(port, cast(Any, None), Metrics(KeyQueue(clock=lambda: 0.0)), ledger):
        yield f"http://127.0.0.1:{port}"


async def asked(url: str) -> tuple[int, str]:
    async with aiohttp.ClientSession() as session, session.get(url) as response:
        return response.status, await response.text()


def test_the_operator_shows_the_ledger_of_a_model_and_of_no_other(tmp_path: Path) -> None:
    files = Files(tmp_path, Limits(file=1000))
    earlier, later, other = lines(1), lines(12, size=100), lines(1)
    write(files, earlier, {"metadata": {**CHURN["metadata"], "uid": "uid-0"}})
    write(files, later)
    write(files, other, {"metadata": {**CHURN["metadata"], "name": "churn.b"}})
    for age, path in enumerate([at(tmp_path), at(tmp_path).with_name("churn.uid-1.jsonl.1"), at(tmp_path, "uid-0")]):
        os.utime(path, (1000 - age, 1000 - age))

    async def story() -> None:
        async with serving(files) as url:
            status, content = await asked(f"{url}/ledger/shop/churn")
            assert status == 200
            got = [line for line in content.splitlines() if '"kind":"start"' not in line]
            kept = [text(each.line) for each in (*earlier, *later[1 - len(got) :])]
            assert got == kept
            for path in ("shop/none", "none/churn", "shop/..%2F..%2Fchurn", "shop/*", "%2e%2e/churn"):
                status, content = await asked(f"{url}/ledger/{path}")
                assert status == 404, path
            assert "no line about shop/none" in (await asked(f"{url}/ledger/shop/none"))[1]

    asyncio.run(story())


def test_an_operator_without_a_ledger_says_so() -> None:
    async def story() -> None:
        async with serving(None) as url:
            status, content = await asked(f"{url}/ledger/shop/churn")
            assert (status, "no ledger is kept" in content) == (404, True)

    asyncio.run(story())


def test_lines_are_counted() -> None:
    metrics = Metrics(KeyQueue(clock=lambda: 0.0))
    metrics.kept(3, 0)
    metrics.kept(0, 2)
    for result, count in (("written", 3), ("lost", 2)):
        assert metrics.registry.get_sample_value("tidegate_ledger_lines_total", {"result": result}) == count


class Proxy:
    """An API server by whose proxy an operator's pod is reached."""

    def __init__(self, holder: str | None, found: Sequence[Any] | ApiError) -> None:
        self._holder, self._found = holder, found
        self.asked: list[str] = []

    @asynccontextmanager
    async def connected(self, kubeconfig: str | None = None, context: str | None = None) -> AsyncIterator[Proxy]:
        yield self

    async def get(self, path: str) -> Any:
        assert path == "/apis/coordination.k8s.io/v1/namespaces/tidegate-system/leases/tidegate-operator"
        return None if self._holder is None else {"spec": {"holderIdentity": self._holder}}

    async def stream(self, path: str, query: Any, seconds: float) -> AsyncIterator[Any]:
        self.asked.append(path)
        if isinstance(self._found, ApiError):
            raise self._found
        for line in self._found:
            yield line


def test_the_command_asks_the_pod_that_acts(monkeypatch: pytest.MonkeyPatch) -> None:
    world = World()
    world.submit(container("v1"))
    operator = world.run(30)
    world.submit(container("v2"))
    world.run(100, operator)
    proxy = Proxy("tidegate-7d9f-abcde-1", world.ledger)
    monkeypatch.setattr("tidegate.adapters.api.connected", proxy.connected)
    done = CliRunner().invoke(main, ["ledger", "churn", "-n", "shop"])
    assert done.exit_code == 0, done.output
    assert proxy.asked == ["/api/v1/namespaces/tidegate-system/pods/tidegate-7d9f-abcde:8080/proxy/ledger/shop/churn"]
    (chain,) = parse(done.stdout.encode().splitlines(), "-").rollouts
    assert list(chain.lines) == list(chains(world.ledger)[0].lines)


@pytest.mark.parametrize(
    ("proxy", "said"),
    [
        (Proxy(None, []), "no operator acts by the lease"),
        (Proxy("", []), "no operator acts by the lease"),
        (Proxy("pod-1", ApiError(404, "no ledger is kept")), "404: no ledger is kept"),
        (Proxy("pod-1", ApiError(403, "pods/proxy is forbidden")), "403: pods/proxy is forbidden"),
    ],
)
def test_why_there_is_no_ledger_is_told(monkeypatch: pytest.MonkeyPatch, proxy: Proxy, said: str) -> None:
    monkeypatch.setattr("tidegate.adapters.api.connected", proxy.connected)
    done = CliRunner().invoke(main, ["ledger", "churn", "-n", "shop"])
    assert done.exit_code == 1
    assert said in done.stderr


@pytest.mark.parametrize(("given", "size"), [("1Gi", 1 << 30), ("500Mi", 500 << 20), ("2G", 2_000_000_000)])
def test_room_is_given_as_a_quantity(given: str, size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    options: list[app.Options] = []

    async def run(given: app.Options, stop: asyncio.Event) -> None:
        options.append(given)

    monkeypatch.setattr(app, "run", run)
    monkeypatch.setattr(logging, "basicConfig", lambda **_: None)
    done = CliRunner().invoke(main, ["run", "--ledger", "/var/lib/ledger", "--ledger-size", given])
    assert done.exit_code == 0, done.output
    assert (options[0].ledger, options[0].ledger_limits.total) == (Path("/var/lib/ledger"), size * 9 // 10)
    assert "less than 1Mi" in CliRunner().invoke(main, ["run", "--ledger-size", "1k"]).stderr
    assert "is not a quantity" in CliRunner().invoke(main, ["run", "--ledger-size", "much"]).stderr
