"""A server process, and requests to it."""

from __future__ import annotations

import http.client
import json
import os
import re
import signal
import subprocess
import sys
import threading
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest

HERE = Path(__file__).parent
SOURCE = HERE.parent / "src"


@dataclass
class Process:
    """A running server. Its standard error is read as it comes, so that it never blocks on a full pipe."""

    popen: subprocess.Popen[str]
    port: int = 0
    log: list[str] = field(default_factory=list)
    _reader: threading.Thread | None = None

    @classmethod
    def start(cls, *arguments: str, **environment: str) -> Process:
        """Starts a server on a free port; does not wait for it."""
        clean = {name: value for name, value in os.environ.items() if not name.startswith("TIDEGATE_")}
        return cls(
            subprocess.Popen(
                [sys.executable, "-m", "tidegate_sklearn", *arguments],
                env={**clean, "PYTHONPATH": f"{SOURCE}:{HERE}", "PORT": "0", **environment},
                stderr=subprocess.PIPE,
                text=True,
            )
        )

    def wait_ready(self) -> Process:
        """Returns once it listens."""
        assert self.popen.stderr is not None
        for line in self.popen.stderr:
            self.log.append(line)
            if found := re.search(r"serving '.*' on port (\d+)", line):
                self.port = int(found[1])
                self._reader = threading.Thread(target=lambda: self.log.extend(self.popen.stderr or []), daemon=True)
                self._reader.start()
                return self
        raise AssertionError(f"the server did not start: {''.join(self.log)}")

    def connect(self) -> http.client.HTTPConnection:
        return http.client.HTTPConnection("127.0.0.1", self.port, timeout=10)

    def terminate(self) -> None:
        self.popen.send_signal(signal.SIGTERM)

    def finish(self) -> int:
        """Its exit status; the log is whole afterwards."""
        status = self.popen.wait(timeout=15)
        if self._reader is not None:
            self._reader.join()
        else:
            assert self.popen.stderr is not None
            self.log.extend(self.popen.stderr)
        assert self.popen.stderr is not None
        self.popen.stderr.close()
        return status


def ask(
    connection: http.client.HTTPConnection, method: str, path: str, body: Any = None, **headers: str
) -> tuple[int, Any, http.client.HTTPMessage]:
    """One request on an open connection: status, parsed JSON, headers. A body that is not bytes is sent as JSON."""
    content = body if body is None or isinstance(body, bytes) else json.dumps(body).encode()
    connection.request(method, path, content, headers)
    response = connection.getresponse()
    text = response.read()
    return response.status, json.loads(text, parse_constant=pytest.fail) if text else None, response.headers


def matrix(rows: Any, datatype: str = "FP64", name: str = "input") -> dict[str, Any]:
    """A request of one [n, features] tensor."""
    values = np.asarray(rows)
    return {"inputs": [{"name": name, "shape": list(values.shape), "datatype": datatype, "data": values.tolist()}]}
