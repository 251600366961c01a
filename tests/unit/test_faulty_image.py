"""The faulty model of the end-to-end tests fails just as it is told to, over real sockets."""

from __future__ import annotations

import http.client
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

PROGRAM = Path(__file__).parents[1] / "images" / "faulty" / "faulty.py"
INFER = "/v2/models/churn/infer"
Start = Callable[..., "Model"]


class Model:
    """A running process; listening unless it was told to crash or wait before."""

    def __init__(self, **environment: str) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-I", PROGRAM],
            env={"PATH": os.defpath, "PORT": "0", "DRAIN_SECONDS": "1", **environment},
            stderr=subprocess.PIPE,
            text=True,
        )

    def listening(self) -> Model:
        assert self.process.stderr is not None
        found = re.search(r"listening on port (\d+)", self.process.stderr.readline())
        assert found
        self.port = int(found[1])
        return self

    def connect(self) -> http.client.HTTPConnection:
        return http.client.HTTPConnection("127.0.0.1", self.port, timeout=5)

    def terminate(self) -> None:
        self.process.send_signal(signal.SIGTERM)

    def status(self) -> int:
        return self.process.wait(timeout=5)


@pytest.fixture
def start() -> Iterator[Start]:
    models: list[Model] = []

    def run(**environment: str) -> Model:
        models.append(Model(**environment))
        return models[-1]

    yield run
    for model in models:
        model.process.kill()
        model.process.wait()
        assert model.process.stderr is not None
        model.process.stderr.close()


def ask(
    connection: http.client.HTTPConnection, method: str = "POST", path: str = INFER, body: Any = None
) -> tuple[int, Any, http.client.HTTPMessage]:
    connection.request(method, path, None if body is None else json.dumps(body))
    response = connection.getresponse()
    text = response.read()
    return response.status, json.loads(text) if text else None, response.headers


def test_answers_name_the_version(start: Start) -> None:
    connection = start(VERSION="v2", TIDEGATE_VERSION="blue").listening().connect()
    output = {"name": "version", "shape": [1], "datatype": "BYTES", "data": ["v2"]}
    expected = {"model_name": "churn", "model_version": "v2", "outputs": [output]}
    status, content, headers = ask(connection)
    assert (status, content, headers["Tidegate-Version"]) == (200, expected, "blue")
    connection_kept = connection.sock
    assert ask(connection, body={"id": "7", "inputs": []})[1] == {**expected, "id": "7"}
    connection.request(
        "POST", INFER, iter([b'{"id":', b' "8"}']), encode_chunked=True, headers={"Transfer-Encoding": "chunked"}
    )
    assert json.loads(connection.getresponse().read()) == {**expected, "id": "8"}
    assert ask(connection, "GET", "/")[0] == 200
    assert ask(connection, "GET", "/v2/health/ready")[:2] == (200, {"ready": True})
    assert ask(connection, "HEAD", "/v2/health/ready")[:2] == (200, None)
    status, _, headers = ask(connection, "GET", "/elsewhere")
    assert (status, headers["Tidegate-Version"]) == (404, "blue")
    assert ask(connection, "GET")[0] == 405
    assert connection.sock is connection_kept
    connection.close()


def test_errors_come_at_their_rate_and_the_same_each_time(start: Start) -> None:
    def statuses(**environment: str) -> list[int]:
        connection = start(ERROR_RATE="0.3", **environment).listening().connect()
        got = [ask(connection)[0] for _ in range(300)]
        assert ask(connection, "GET", "/v2/health/ready")[0] == 200
        connection.close()
        return got

    first = statuses(SEED="1")
    assert set(first) == {200, 500}
    assert 60 <= first.count(500) <= 120
    assert statuses(SEED="1", SLOW_RATE="0.5", SLOW_MS="0.1") == first
    assert statuses(SEED="2") != first


def test_slow_answers_delay_no_others(start: Start) -> None:
    model = start(SLOW_RATE="1", SLOW_MS="300").listening()
    slow, quick = model.connect(), model.connect()
    begin = time.monotonic()
    slow.request("POST", INFER)
    assert ask(quick, "GET", "/v2/health/ready")[0] == 200
    assert time.monotonic() - begin < 0.25
    assert slow.getresponse().status == 200
    assert time.monotonic() - begin >= 0.3
    slow.close()
    quick.close()


def test_a_drain_fails_no_request(start: Start) -> None:
    model = start(SLOW_RATE="0.2", SLOW_MS="300").listening()
    failures: list[Exception | int] = []

    def client() -> None:
        # as a proxy does: keeps its connection until it is told to close it, then goes elsewhere
        connection = model.connect()
        try:
            while True:
                status, _, headers = ask(connection)
                if status != 200:
                    failures.append(status)
                if headers["Connection"] == "close":
                    return
        except (OSError, http.client.HTTPException) as error:
            failures.append(error)
        finally:
            connection.close()

    idle = model.connect()
    assert ask(idle, "GET", "/v2/health/ready")[0] == 200
    clients = [threading.Thread(target=client) for _ in range(4)]
    for thread in clients:
        thread.start()
    time.sleep(0.2)
    model.terminate()
    while (ready := ask(late := model.connect(), "GET", "/v2/health/ready"))[0] == 200:  # new connections, too
        late.close()
    assert (ready[0], ready[2]["Connection"]) == (503, "close")
    late.close()
    status, _, headers = ask(idle)
    assert (status, headers["Connection"]) == (200, "close")
    idle.close()
    for thread in clients:
        thread.join()
    assert failures == []
    assert model.status() == 0
    with pytest.raises(ConnectionRefusedError):
        model.connect().connect()


def test_crashes(start: Start) -> None:
    at_once, later, counted = (
        start(CRASH_ON_START="1"),
        start(CRASH_AFTER_SECONDS="0.2"),
        start(CRASH_AFTER_REQUESTS="3"),
    )
    assert at_once.status() == 1
    later.listening()
    assert later.status() == 1
    connection = counted.listening().connect()
    assert [ask(connection)[0], ask(connection, "GET", "/")[0], ask(connection)[0]] == [200, 200, 200]
    with pytest.raises((http.client.RemoteDisconnected, ConnectionResetError)):
        ask(connection)
    assert counted.status() == 1
    connection.close()


def test_a_slow_start(start: Start) -> None:
    begin = time.monotonic()
    model, stopped = start(STARTUP_SECONDS="0.4"), start(STARTUP_SECONDS="60")
    model.listening()
    assert time.monotonic() - begin >= 0.4
    stopped.terminate()
    assert stopped.status() == 0


@pytest.mark.parametrize("junk", [b"hello\r\n\r\n", b"POST / HTTP/1.1\r\nContent-Length: -1\r\n\r\n"])
def test_junk_is_refused(start: Start, junk: bytes) -> None:
    model = start().listening()
    with socket.create_connection(("127.0.0.1", model.port), timeout=5) as raw:
        raw.sendall(junk)
        assert raw.recv(1000).startswith(b"HTTP/1.1 400 ")


def test_wrong_settings(start: Start) -> None:
    model = start(ERROR_RATE="2")
    assert model.status() == 1
    assert model.process.stderr is not None
    assert "must be from 0 to 1" in model.process.stderr.read()
