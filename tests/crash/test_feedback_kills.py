"""The feedback service as a process: killed again and again, it loses nothing that it acknowledged."""

from __future__ import annotations

import json
import random
import signal
import socket
import subprocess
import sys
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from live import wait_for

KILLS = 12
SENDERS = 4
VERSIONS = ("v1-00000001", "v2-00000002")


class Process:
    """`tidegate feedback` on a port of its own."""

    def __init__(self, folder: Path, said: Path, *options: str) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.folder, self.said, self.options = folder, said, options

    @contextmanager
    def running(self) -> Iterator[subprocess.Popen[bytes]]:
        command = [sys.executable, "-m", "tidegate", "feedback", "--host", "127.0.0.1", "--port", str(self.port)]
        command += ["--data", str(self.folder), *self.options]
        with self.said.open("ab") as stderr, subprocess.Popen(command, stderr=stderr) as process:
            try:
                wait_for(lambda: self.ready(process), 60, "the feedback service is ready")
                yield process
            finally:
                process.kill()

    def ready(self, process: subprocess.Popen[bytes]) -> bool:
        if process.poll() is not None:
            raise RuntimeError(self.said.read_text())
        return self.call("/readyz") is not None

    def call(self, path: str, content: Any = None) -> Any:
        """The answer; None if there was none, or one that says it was not taken."""
        data = None if content is None else json.dumps(content).encode()
        request = urllib.request.Request(
            f"http://127.0.0.1:{self.port}{path}", data, {"Content-Type": "application/json"}
        )
        try:
            with urllib.request.urlopen(request, timeout=10) as answer:  # noqa: S310
                return json.load(answer)
        except urllib.error.HTTPError as error:
            if error.code != 503:
                raise
        except (OSError, ValueError):
            pass
        return None

    def totals(self) -> Any:
        return self.call("/v1/totals?namespace=shop&deployment=churn")


def send(process: Process, sender: int, round_: int, told: dict[str, bool], stop: threading.Event) -> None:
    """Sends items of its own until told to stop, or there is no answer. `told`: whether each was acknowledged."""
    number = 0
    while not stop.is_set():
        batch = [
            {
                "deployment": "shop/churn",
                "version": VERSIONS[n % 2],
                "reward": (n % 5) / 4,
                "id": f"{round_}-{sender}-{n}",
            }
            for n in range(number, number + 1 + sender * 3)
        ]
        number += len(batch)
        told.update({item["id"]: False for item in batch})
        answer = process.call("/v1/feedback", {"items": batch})
        if answer is None:
            return
        assert answer["credited"] == len(batch)
        told.update({item["id"]: True for item in batch})


def expected(ids: Iterator[str] | list[str]) -> dict[str, dict[str, float]]:
    """Counters after each of the ids was credited once. Quarters add up exactly in any order."""
    found = {version: {"count": 0, "sum": 0.0, "sumsq": 0.0} for version in VERSIONS}
    for id_ in ids:
        number = int(id_.split("-")[2])
        counter, reward = found[VERSIONS[number % 2]], (number % 5) / 4
        counter["count"] += 1
        counter["sum"] += reward
        counter["sumsq"] += reward * reward
    return found


def test_kills_lose_nothing_acknowledged_and_count_nothing_twice(tmp_path: Path) -> None:
    """With snapshots every few kilobytes, so that kills hit them too."""
    process = Process(tmp_path / "data", tmp_path / "stderr", "--compact-at", "8192", "--drain", "0")
    told: dict[str, bool] = {}
    marks, chance = set(), random.Random(4)
    for round_ in range(KILLS):
        with process.running() as running:
            stop = threading.Event()
            threads = [
                threading.Thread(target=send, args=(process, sender, round_, told, stop)) for sender in range(SENDERS)
            ]
            for thread in threads:
                thread.start()
            so_far = sum(told.values())
            wanted = so_far + chance.randrange(1, 400)
            wait_for(lambda wanted=wanted: sum(list(told.values())) >= wanted, 60, "some were acknowledged")  # type: ignore[misc]
            running.send_signal(signal.SIGKILL)
            running.wait(10)
            stop.set()
            for thread in threads:
                thread.join()
        with process.running():
            found = process.totals()
            marks.add(found["mark"])
            counted = sum(counter["count"] for counter in found["versions"].values())
            assert sum(told.values()) <= counted <= len(told), "what was acknowledged, and nothing that was not sent"
            # sent again with its id, what was left open is counted once, whether it had been or not
            again = [id_ for id_, sure in told.items() if not sure]
            items = [
                {"deployment": "shop/churn", "version": VERSIONS[n % 2], "reward": (n % 5) / 4, "id": id_}
                for id_ in again
                for n in [int(id_.split("-")[2])]
            ]
            if items:
                answer = process.call("/v1/feedback", {"items": items})
                assert answer["credited"] + answer["duplicates"] == len(items)
            told.update(dict.fromkeys(again, True))
            assert process.totals()["versions"] == expected(list(told))
    assert len(marks) == 1, "one set of counters all the way"
    assert int(next((tmp_path / "data").glob("log-*")).name.removeprefix("log-")) > 2, "and snapshots were taken"


def test_sigterm_ends_it_without_a_lost_answer(tmp_path: Path) -> None:
    process = Process(tmp_path / "data", tmp_path / "stderr", "--drain", "0.5")
    told: dict[str, bool] = {}
    stop = threading.Event()
    with process.running() as running:
        threads = [threading.Thread(target=send, args=(process, sender, 0, told, stop)) for sender in range(SENDERS)]
        for thread in threads:
            thread.start()
        wait_for(lambda: len(told) > 200, 60, "some were sent")
        running.send_signal(signal.SIGTERM)
        assert running.wait(20) == 0, process.said.read_text()
        for thread in threads:
            thread.join()
    with process.running():
        counted = sum(counter["count"] for counter in process.totals()["versions"].values())
        assert counted >= sum(told.values())
    assert "Traceback" not in process.said.read_text()


def test_damaged_store_is_refused_with_words(tmp_path: Path) -> None:
    process = Process(tmp_path / "data", tmp_path / "stderr")
    item = {"deployment": "shop/churn", "version": VERSIONS[0], "reward": 1}
    with process.running():
        for _ in range(3):
            process.call("/v1/feedback", item)
    (log,) = (tmp_path / "data").glob("log-*")
    content = bytearray(log.read_bytes())
    content[20] ^= 1
    log.write_bytes(content)
    command = [
        sys.executable,
        "-m",
        "tidegate",
        "feedback",
        "--data",
        str(tmp_path / "data"),
        "--port",
        str(process.port),
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 1
    assert f"Error: {log} is damaged" in done.stderr
    assert "Traceback" not in done.stderr
    assert log.read_bytes() == content, "left as it was found"
