"""The operator's process: it becomes ready where there is nothing, and ends as it is told."""

from __future__ import annotations

import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

import pytest

pytestmark = pytest.mark.cluster


def test_it_becomes_ready_in_an_empty_namespace_and_a_sigterm_ends_it_well(
    testbed: dict[str, str], namespace: str, tmp_path: Path
) -> None:
    with socket.socket() as free:
        free.bind(("", 0))
        port = free.getsockname()[1]
    env = {name: value for name, value in testbed.items() if name != "KUBECONFIG"}
    command = [sys.executable, "-m", "tidegate", "run", "--no-leader-elect", "--port", str(port)]
    command += ["--namespace", namespace, "--kubeconfig", testbed["KUBECONFIG"]]
    said = tmp_path / "stderr"
    with said.open("w") as stderr, subprocess.Popen(command, env=env, stderr=stderr) as process:
        try:
            end = time.monotonic() + 60
            while not ready(port):
                assert process.poll() is None, said.read_text()
                assert time.monotonic() < end, said.read_text()
                time.sleep(0.2)
            process.send_signal(signal.SIGTERM)
            status = process.wait(25)
        finally:
            process.kill()
    assert status == 0, said.read_text()
    assert "Traceback" not in said.read_text()


def ready(port: int) -> bool:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/readyz", timeout=5) as answer:
            return bool(answer.status == 200)
    except (urllib.error.URLError, OSError):
        return False
