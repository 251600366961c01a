"""A real process over real sockets."""

from __future__ import annotations

import json
import socket
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from sklearn.datasets import load_iris

from sklearn_estimators import Failing, Sleeping
from sklearn_support import Process, ask, matrix
from tidegate_sklearn import __version__
from tidegate_sklearn.server import settings

Start = Callable[..., Process]

INFER = "/v2/models/iris/infer"
ROWS = load_iris().data[[0, 149]]


def test_metadata_and_health(iris: Process) -> None:
    connection = iris.connect()
    for path in ("/v2", "/v2/"):
        assert ask(connection, "GET", path)[:2] == (
            200,
            {"name": "tidegate-sklearn", "version": __version__, "extensions": []},
        )
    assert ask(connection, "GET", "/v2/health/live")[:2] == (200, {"live": True})
    assert ask(connection, "GET", "/v2/health/ready")[:2] == (200, {"live": True, "ready": True})
    for path in ("/v2/models/iris", "/v2/models/iris/versions/v7"):
        assert ask(connection, "GET", f"{path}/ready")[:2] == (200, {"name": "iris", "ready": True})
        status, content, _ = ask(connection, "GET", path)
        assert status == 200
        assert content == {
            "name": "iris",
            "versions": ["v7"],
            "platform": "sklearn_joblib",
            "inputs": [{"name": "input", "datatype": "FP64", "shape": [-1, 4]}],
            "outputs": [
                {"name": "predict", "datatype": "BYTES", "shape": [-1]},
                {"name": "predict_proba", "datatype": "FP64", "shape": [-1, 3]},
            ],
        }
    assert ask(connection, "HEAD", "/v2/health/ready")[:2] == (200, None)
    connection.close()


def test_infer_and_the_last_model_name_wins(iris: Process) -> None:
    connection = iris.connect()
    for path in (INFER, "/v2/models/iris/versions/v7/infer"):
        status, content, headers = ask(connection, "POST", path, {"id": "é", **matrix(ROWS)})
        assert (status, content["id"], content["model_version"]) == (200, "é", "v7")
        assert content["outputs"][0]["data"] == ["setosa", "virginica"]
        assert headers["tidegate-version"] == "v7"
        assert headers["content-type"] == "application/json"
    status, content, headers = ask(connection, "POST", "/v2/models/from-the-runtime/infer", matrix(ROWS))
    assert (status, content) == (404, {"error": "there is no model 'from-the-runtime' here; this server has 'iris'"})
    assert headers["tidegate-version"] == "v7"
    connection.close()


def test_no_answer_is_held_back_in_the_kernel(iris: Process) -> None:
    connection, seconds = iris.connect(), []
    for _ in range(50):
        start = time.perf_counter()
        ask(connection, "POST", INFER, matrix(ROWS))
        seconds.append(time.perf_counter() - start)
    connection.close()
    # head and body of an answer are two writes: without TCP_NODELAY the second waits 40 ms, once a connection is past
    # the first few packets, which are acknowledged at once
    assert min(seconds[25:]) < 0.03


@pytest.mark.parametrize(
    ("method", "path", "status", "message"),
    [
        ("GET", "/", 404, "nothing at /"),
        ("GET", "/v1/models/iris", 404, "nothing at"),
        ("GET", "/v2/models/iris/versions/v8", 404, "no version 'v8' of 'iris' here; this server has version 'v7'"),
        ("GET", "/v2/models/other/ready", 404, "no model 'other'"),
        ("GET", INFER, 405, "GET is not allowed here; expected POST"),
        ("POST", "/v2/health/ready", 405, "POST is not allowed here; expected GET"),
        ("DELETE", "/v2/models/iris", 405, "DELETE is not allowed"),
        ("POST", INFER, 400, "not valid JSON"),
    ],
)
def test_wrong_requests(iris: Process, method: str, path: str, status: int, message: str) -> None:
    connection = iris.connect()
    got, content, headers = ask(connection, method, path)
    assert got == status
    assert list(content) == ["error"]
    assert message in content["error"]
    assert headers["tidegate-version"] == "v7"
    if status == 405:
        assert headers["allow"] in content["error"]
    connection.close()


@pytest.mark.parametrize("header", ["Content-Encoding", "Inference-Header-Content-Length"])
def test_encodings_it_does_not_know(iris: Process, header: str) -> None:
    connection = iris.connect()
    assert ask(connection, "POST", INFER, matrix(ROWS), **{header: "12"})[0] == 415
    connection.close()


def test_a_huge_body_is_refused_and_the_connection_lives_on(iris: Process) -> None:
    connection = iris.connect()
    huge = json.dumps(matrix(ROWS)).encode() + b" " * 200_000
    status, content, _ = ask(connection, "POST", INFER, huge)
    assert (status, content["error"]) == (413, "the body is larger than this server's limit of 65536 bytes")
    chunks = (huge[start : start + 9000] for start in range(0, len(huge), 9000))
    connection.request("POST", INFER, chunks, encode_chunked=True, headers={"Transfer-Encoding": "chunked"})
    response = connection.getresponse()
    assert (response.status, "limit" in response.read().decode()) == (413, True)
    assert ask(connection, "POST", INFER, huge[:65536])[0] == 200
    connection.close()


def test_a_body_that_announces_its_size_is_refused_before_it_is_sent(iris: Process) -> None:
    with socket.create_connection(("127.0.0.1", iris.port), timeout=5) as raw:
        raw.sendall(f"POST {INFER} HTTP/1.1\r\nHost: x\r\nContent-Length: 99999999\r\n\r\n".encode())
        assert raw.recv(1000).startswith(b"HTTP/1.1 413 ")


def test_a_client_that_stops_halfway_harms_no_one(iris: Process) -> None:
    head = f"POST {INFER} HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n\r\n".encode()
    for part in (b"", b'{"inputs": ['):
        with socket.create_connection(("127.0.0.1", iris.port)) as raw:
            raw.sendall(head + part)
            raw.shutdown(socket.SHUT_WR)
            assert raw.recv(100) == b""
    with socket.create_connection(("127.0.0.1", iris.port)) as raw:
        raw.sendall(b"\x16\x03\x01 this is no HTTP\r\n\r\n")
        assert raw.recv(1000).startswith(b"HTTP/1.1 400 ")
    connection = iris.connect()
    assert ask(connection, "POST", INFER, matrix(ROWS))[0] == 200
    connection.close()


def test_metrics(iris: Process) -> None:
    def samples() -> dict[str, float]:
        connection = iris.connect()
        connection.request("GET", "/metrics")
        response = connection.getresponse()
        assert response.headers["content-type"].startswith("text/plain")
        lines = [line for line in response.read().decode().splitlines() if not line.startswith("#")]
        connection.close()
        return {name: float(value) for name, value in (line.rsplit(" ", 1) for line in lines)}

    before = samples()
    connection = iris.connect()
    ask(connection, "POST", INFER, matrix(ROWS))
    ask(connection, "POST", INFER, b"{")
    ask(connection, "POST", "/v2/models/other/infer", b"{}")
    connection.close()
    after = samples()
    for code in (200, 400, 404):
        name = f'tidegate_server_requests_total{{code="{code}",model="iris",version="v7"}}'
        assert after[name] - before.get(name, 0) == 1
    name = 'tidegate_server_request_duration_seconds_count{model="iris",version="v7"}'
    assert after[name] - before.get(name, 0) == 3
    assert 0 < after['tidegate_server_load_seconds{model="iris",version="v7"}'] < 60
    assert not any("_created" in name for name in after)


def test_a_failing_model_answers_500_and_logs_why(start: Start, store: Callable[[Any], Path]) -> None:
    process = start(f"--model_dir={store(Failing())}", TIDEGATE_DRAIN_SECONDS="0").wait_ready()
    connection = process.connect()
    status, content, headers = ask(connection, "POST", "/v2/models/model/infer", matrix([[1.0]]))
    assert (status, content) == (500, {"error": "the model's predict failed with RuntimeError; the log says why"})
    assert "tidegate-version" not in headers
    status, content, _ = ask(connection, "GET", "/v2/models/model/versions/v7")
    assert (status, "none by version" in content["error"]) == (404, True)
    connection.close()
    process.terminate()
    assert process.finish() == 0
    assert "secret detail" in "".join(process.log)


def test_health_during_a_prediction_and_a_drain(start: Start, store: Callable[[Any], Path]) -> None:
    process = start(f"--model_dir={store(Sleeping())}", TIDEGATE_DRAIN_SECONDS="0.5").wait_ready()
    idle, busy, late = process.connect(), process.connect(), process.connect()
    assert ask(idle, "GET", "/v2/health/ready")[0] == 200
    answers: list[tuple[int, Any, Any]] = []
    thread = threading.Thread(
        target=lambda: answers.append(ask(busy, "POST", "/v2/models/model/infer", matrix([[1.5]])))
    )
    thread.start()
    time.sleep(0.2)
    start = time.monotonic()
    assert ask(idle, "GET", "/v2/health/live")[0] == 200
    assert time.monotonic() - start < 0.5  # the prediction takes 1.5 s

    process.terminate()
    while (ready := ask(idle, "GET", "/v2/health/ready"))[0] == 200:
        time.sleep(0.02)
    assert ready[:2] == (503, {"live": True, "ready": False})
    assert ready[2]["connection"] == "close"
    status, _, headers = ask(
        late, "POST", "/v2/models/model/infer", matrix([[0.0]])
    )  # a new connection, while draining
    assert (status, headers["connection"]) == (200, "close")
    thread.join()
    assert answers[0][0] == 200
    assert process.finish() == 0
    with pytest.raises(ConnectionRefusedError):
        process.connect().request("GET", "/")
    for connection in (idle, busy, late):
        connection.close()


def test_a_start_that_fails_says_why(start: Start, tmp_path: Path) -> None:
    (tmp_path / "weights.bin").touch()
    absent = start(f"--model_dir={tmp_path}")
    unknown = start("--model_nam=x")
    assert absent.finish() == 1
    assert "neither model.joblib nor model.skops; found: weights.bin" in "".join(absent.log)
    assert unknown.finish() == 2
    assert "unrecognized arguments: --model_nam=x" in "".join(unknown.log)


def test_settings() -> None:
    chosen = settings([], {})
    assert (chosen.name, chosen.directory, chosen.port) == ("model", Path("/mnt/models"), 8080)
    assert (chosen.version, chosen.trusted, chosen.max_body) == (None, (), 16 << 20)
    chosen = settings(
        ["--model_name=a", "--model_dir", "/m", "--model_name", "b"],
        {
            "PORT": "9000",
            "TIDEGATE_VERSION": "v1",
            "TIDEGATE_SKOPS_TRUSTED": "a.B,c.D",
            "TIDEGATE_MAX_BODY_BYTES": "10",
        },
    )
    assert (chosen.name, chosen.directory, chosen.port, chosen.version) == ("b", Path("/m"), 9000, "v1")
    assert (chosen.trusted, chosen.max_body) == (("a.B", "c.D"), 10)


@pytest.mark.parametrize(
    ("arguments", "environment", "message"),
    [
        (["--model_name="], {}, "--model_name must be one segment"),
        (["--model_name=a/b"], {}, "--model_name must be one segment"),
        (["--http_port=1"], {}, "unrecognized arguments: --http_port=1"),
        ([], {"PORT": "http"}, "PORT must be a number from 0 to 65535, not 'http'"),
        ([], {"PORT": "65536"}, "PORT must be"),
        ([], {"TIDEGATE_DRAIN_SECONDS": "nan"}, "TIDEGATE_DRAIN_SECONDS must be"),
        ([], {"TIDEGATE_VERSION": "a\nb"}, "TIDEGATE_VERSION must be printable"),
    ],
)
def test_wrong_settings(
    arguments: list[str], environment: dict[str, str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as caught:
        settings(arguments, environment)
    assert caught.value.code == 2
    assert message in capsys.readouterr().err
