"""What tests against a real cluster have in common: kubectl, and waiting until something is so."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

T = TypeVar("T")
ROOT = Path(__file__).parent.parent


class NoTestbed(Exception):
    """There is no cluster to test on; the message says what to run."""


def testbed_env() -> dict[str, str]:
    """Variables that lead to the testbed: those of the shell if it has them, else what the testbed itself says.

    KUBECONFIG alone is not enough: it may lead to a cluster that tests must not touch.
    """
    if {"TIDEGATE_CLUSTER", "KUBECONFIG"} <= os.environ.keys():
        return dict(os.environ)
    told = subprocess.run(
        [sys.executable, "-m", "hack.testbed", "env", "--json"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    if told.returncode:
        raise NoTestbed(f'no testbed to test on. Run: make up && eval "$(make -s env)"\n{told.stderr.strip()}')
    found: dict[str, str] = json.loads(told.stdout)
    path = f"{found['TIDEGATE_BIN']}:{os.environ['PATH']}"
    return {**os.environ, **found, "PATH": path}


class KubectlError(Exception):
    """kubectl ended with an error; the message is what it said."""


@dataclass(frozen=True)
class Kubectl:
    """kubectl on the testbed: `kubectl("get", "mdep", "-n", ns) -> str`. A failure is a `KubectlError`."""

    env: dict[str, str]

    def __call__(self, *args: str, input: str | None = None) -> str:
        done = subprocess.run(
            ["kubectl", *args], env=self.env, input=input, capture_output=True, text=True, timeout=120, check=False
        )
        if done.returncode:
            raise KubectlError(f"kubectl {' '.join(args)}: {done.stderr.strip()}")
        return done.stdout

    def json(self, *args: str) -> Any:
        """What `kubectl … -o json` prints, read."""
        return json.loads(self(*args, "-o", "json"))

    def apply(self, *objects: dict[str, Any], namespace: str | None = None) -> str:
        """Applies objects on the server side, as a user of that name would."""
        where = ("-n", namespace) if namespace else ()
        bundle = {"apiVersion": "v1", "kind": "List", "items": list(objects)}
        return self("apply", "--server-side", *where, "-f", "-", input=json.dumps(bundle))


@contextmanager
def api_proxy(kubectl: Kubectl) -> Iterator[int]:
    """A port that leads to the API server meanwhile, and by way of it to the cluster's services."""
    command = ["kubectl", "proxy", "--port=0", "--address=127.0.0.1"]
    with subprocess.Popen(command, env=kubectl.env, stdout=subprocess.PIPE, text=True) as proxy:
        assert proxy.stdout
        try:
            yield int(proxy.stdout.readline().rpartition(":")[2])
        finally:
            proxy.terminate()


def wait_for(condition: Callable[[], T], timeout: float, what: str) -> T:
    """Waits until `condition` returns something true, and returns that.

    While it raises AssertionError or KubectlError it is not yet so. If it is not so in time, the failure says what
    was waited for, how long, and what the last try gave.
    """
    end = time.monotonic() + timeout
    while True:
        try:
            last: Any = condition()
            if last:
                return last  # type: ignore[no-any-return]
        except (AssertionError, KubectlError) as error:
            last = error
        if time.monotonic() > end:
            raise AssertionError(f"not within {timeout:.0f} s: {what}. Last try: {last!s:.2000}")
        time.sleep(0.25)
