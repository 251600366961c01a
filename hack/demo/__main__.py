"""`make demo`: one model's life on the testbed, told as it happens.

Trains models on real data, serves the first through a ModelDeployment, lets it fall to zero and wakes it, moves to the
second by evidence while requests keep coming, goes back, tries a third that fails now and then, and finds the best of
three by whether their answers turned out right. Ends with status 1 if anything was not as it should be.
"""

from __future__ import annotations

import asyncio
import http.client
import json
import os
import subprocess
import sys
import tempfile
import textwrap
import time
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
from kserve import InferenceRESTClient, InferInput, InferRequest, RESTConfig

from hack.demo import models
from hack.demo.s3 import Store

NAME, NAMESPACE = "biopsy", "default"
HOST = f"{NAME}.{NAMESPACE}.localhost"
SENDERS = 4
"""Requests in flight during the rollout."""

DEGRADED = """\
apiVersion: tidegate.dev/v1alpha1
kind: ModelDeployment
metadata: {{name: {name}}}
spec:
  model:
    version: v3
    container: {{image: "{image}"}}
    env: [{{name: ERROR_RATE, value: "0.2"}}]
  scaling: {{window: 10s, idle: 5s}}
  rollout:
    guardrails: [{{name: errors, errors: {{maxIncrease: 2%}}}}]
    risk: {{badResponses: 500}}
"""
"""A version that fails a fifth of all requests."""

MANIFEST = """\
apiVersion: tidegate.dev/v1alpha1
kind: ModelDeployment
metadata: {{name: {name}}}
spec:
  model: {{version: {version}, uri: "s3://models/{name}/{version}", format: sklearn}}
  scaling: {{window: 10s, idle: 5s}}
  rollout:
    guardrails: [{{name: errors, errors: {{maxIncrease: 2%}}}}]
    risk: {{badResponses: 500}}
"""


TEST = """\
apiVersion: tidegate.dev/v1alpha1
kind: ModelDeployment
metadata: {{name: {name}}}
spec:
  model: {{version: v1, uri: "s3://models/{name}/v1", format: sklearn}}
  challengers:
    - {{name: trees, model: {{version: v2, uri: "s3://models/{name}/v2", format: sklearn}}}}
    - {{name: stump, model: {{version: v0, uri: "s3://models/{name}/v0", format: sklearn}}}}
  scaling: {{window: 10s, idle: 5s}}
  rollout:
    strategy: ABTest
    goal: reward
    promoteWinner: true
    guardrails: [{{name: errors, errors: {{maxIncrease: 2%}}}}]
"""
"""Three versions, compared by the rewards that are reported."""


class Unexpected(Exception):
    """The demo did not go as it should; the message says what, and where to look."""


def say(text: str = "") -> None:
    """A line of the story."""
    print(textwrap.fill(text, 110, subsequent_indent="  ") if text else "", flush=True)


def title(number: int, text: str) -> None:
    """A chapter of the story."""
    print(f"\n\033[1m{number}. {text}\033[0m" if sys.stdout.isatty() else f"\n{number}. {text}", flush=True)


def run(*command: str, text: str | None = None) -> str:
    """What a program prints; `Unexpected` with its words if it fails."""
    done = subprocess.run(command, input=text, capture_output=True, text=True, check=False)
    if done.returncode:
        raise Unexpected(f"{' '.join(command)}: {done.stderr.strip()}")
    return done.stdout.strip()


def kubectl(*args: str, text: str | None = None) -> str:
    """kubectl in the testbed."""
    return run("kubectl", *args, text=text)


def apply(version: str) -> None:
    """Shows and applies the manifest of a version."""
    manifest = MANIFEST.format(name=NAME, version=version)
    print(textwrap.indent(manifest, "    "), end="")
    kubectl("apply", "-n", NAMESPACE, "-f", "-", text=manifest)


def status() -> dict[str, Any]:
    """Status of the ModelDeployment, if it speaks of the newest spec; else nothing yet."""
    found = json.loads(kubectl("get", "modeldeployments.tidegate.dev", NAME, "-n", NAMESPACE, "-o", "json"))
    told: dict[str, Any] = found.get("status", {})
    return told if told.get("observedGeneration") == found["metadata"]["generation"] else {}


def condition(kind: str) -> dict[str, Any]:
    """One of its conditions."""
    return next((c for c in status().get("conditions", []) if c["type"] == kind), {"status": "Unknown", "message": ""})


def pods() -> int:
    """Pods of the model, those on their way out included: they may still answer."""
    items = json.loads(kubectl("get", "pods", "-n", NAMESPACE, "-l", f"tidegate.dev/deployment={NAME}", "-o", "json"))[
        "items"
    ]
    return len(items)


async def until(so: Callable[[], bool], what: str, patience: float = 180) -> float:
    """Waits until something is so, showing that it waits. Returns the seconds that it took."""
    began = time.monotonic()
    while not await asyncio.to_thread(so):
        waited = time.monotonic() - began
        if waited > patience:
            raise Unexpected(f"not within {patience:.0f} s: {what}. Look: tidegate get {NAME}")
        if sys.stdout.isatty():
            print(f"\r  waiting: {what} ({waited:.0f} s)  ", end="", flush=True)
        await asyncio.sleep(0.3)
    if sys.stdout.isatty():
        print("\r\033[K", end="")
    return time.monotonic() - began


class Client:
    """Sends rows with the kserve client, through the gateway's port on this host."""

    def __init__(self) -> None:
        port = os.environ["TIDEGATE_URL_PORT"]
        self._url = f"http://127.0.0.1:{port}"
        self._client = InferenceRESTClient(RESTConfig(protocol="v2", retries=0, timeout=90))

    async def predict(self, rows: Any) -> tuple[list[str], str]:
        """Labels of the rows, and the version that gave them."""
        tensor = InferInput("rows", list(rows.shape), "FP64")
        tensor.set_data_from_numpy(rows, binary_data=False)
        request = InferRequest(NAME, [tensor])
        headers: dict[str, str] = {}
        answer = await self._client.infer(
            self._url, request, headers={"Host": HOST}, response_headers=headers, model_name=NAME
        )
        return list(answer.outputs[0].data), headers.get("tidegate-version", "?")


class Traffic:
    """Constant load: single rows, over and over, from several senders."""

    def __init__(self, client: Client, rows: Any, diagnoses: Diagnoses | None = None) -> None:
        self._client, self._rows, self._diagnoses = client, rows, diagnoses
        self.versions: Counter[str] = Counter()
        self.failures: list[str] = []
        self.slowest = 0.0

    async def _send(self, first: int) -> None:
        for n in range(first, 10**9, SENDERS):
            began = time.monotonic()
            try:
                labels, version = await self._client.predict(self._rows[n % len(self._rows)][None])
                self.versions[version.split("-")[0]] += 1
                if self._diagnoses:
                    await self._diagnoses.report(n, labels[0], version)
            except Exception as error:  # whatever it was, it is a failed request, and told
                self.failures.append(repr(error))
            self.slowest = max(self.slowest, time.monotonic() - began)
            await asyncio.sleep(0.01)

    async def __aenter__(self) -> Traffic:
        self._tasks = [asyncio.create_task(self._send(n)) for n in range(SENDERS)]
        return self

    async def __aexit__(self, *_: object) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    @property
    def sent(self) -> int:
        """Requests that were answered or failed."""
        return sum(self.versions.values()) + len(self.failures)


class Diagnoses:
    """What became of each answer: 1 if it was right, 0 if not, sent to the feedback service a batch at a time."""

    BATCH = 50

    def __init__(self, labels: Any) -> None:
        self._labels = labels
        self._items: list[dict[str, Any]] = []
        self.reported = 0

    def __enter__(self) -> Diagnoses:
        command = ["kubectl", "proxy", "--port=0", "--address=127.0.0.1"]
        self._proxy = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        if self._proxy.stdout is None:
            raise Unexpected("kubectl proxy says nothing")
        self._port = int(self._proxy.stdout.readline().strip().rpartition(":")[2])
        return self

    def __exit__(self, *_: object) -> None:
        self._proxy.terminate()
        self._proxy.wait()

    async def report(self, row: int, label: str, version: str) -> None:
        """Tells whether the label of a row was right; `version` gave it."""
        reward = int(label == self._labels[row % len(self._labels)])
        self._items.append({"namespace": NAMESPACE, "deployment": NAME, "version": version, "reward": reward})
        if len(self._items) >= self.BATCH:
            batch, self._items = self._items, []
            await asyncio.to_thread(self._post, batch)

    def _post(self, batch: list[dict[str, Any]]) -> None:
        connection = http.client.HTTPConnection("127.0.0.1", self._port, timeout=30)
        path = "/api/v1/namespaces/tidegate-system/services/tidegate-feedback:http/proxy/v1/feedback"
        connection.request("POST", path, json.dumps({"items": batch}), {"Content-Type": "application/json"})
        answer = connection.getresponse()
        told = answer.read()
        connection.close()
        if answer.status != 200:
            raise Unexpected(f"the feedback service answers {answer.status}: {told[:300]!r}")
        self.reported += len(batch)


def prepare() -> models.Split:
    """Trains and uploads the models."""
    data = models.split()
    trained = models.train(data)
    say(f"data: {models.DATA}: {len(data.train.rows)} rows to train on, {len(data.held_out.rows)} held out")
    for version, model in trained.items():
        say(
            f"{version}: {type(model[-1] if hasattr(model, 'steps') else model).__name__}, "
            f"{models.accuracy(model, data.held_out):.1%} of the held-out rows right"
        )
    store = Store(
        os.environ["TIDEGATE_S3_ENDPOINT"], os.environ["AWS_ACCESS_KEY_ID"], os.environ["AWS_SECRET_ACCESS_KEY"]
    )
    with tempfile.TemporaryDirectory() as folder:
        models.save(trained, data, Path(folder))
        for version in trained:
            for url in store.upload(Path(folder) / version, os.environ["TIDEGATE_S3_BUCKET"], f"{NAME}/{version}"):
                say(f"uploaded {url}")
    return data


def decided(began: float) -> Callable[[], bool]:
    """Whether the winner has all requests; shows the arms as they change."""
    shown: Any = None

    def so() -> bool:
        nonlocal shown
        told = status()
        arms = told.get("experiment", {}).get("arms", [])
        progress = next((c for c in told.get("conditions", []) if c["type"] == "Progressing"), {})
        stand = (progress.get("reason"), [(arm["name"], arm.get("weight"), arm.get("out")) for arm in arms])
        if arms and stand != shown:
            if sys.stdout.isatty():
                print("\r\033[K", end="")
            words = [
                f"{arm['name']} {arm.get('weight', 0)}%"
                + (f" ({arm['goal']['rate']:.0%} right)" if "rate" in arm.get("goal", {}) else "")
                for arm in arms
            ]
            say(f"{time.monotonic() - began:5.0f} s  {', '.join(words):<66}  {progress.get('reason', '')}")
            shown = stand
        weights = {v["name"]: v["weight"] for v in told.get("versions", []) if v.get("weight")}
        return progress.get("reason") == "WinnerServing" and weights == {"v2": 100}

    return so


async def main() -> None:
    """The whole story."""
    began = time.monotonic()
    client = Client()
    title(1, "Three models, trained on real data, go to the model store")
    held_out = prepare().held_out

    title(2, "A ModelDeployment serves one of them, v1")
    if kubectl("get", "modeldeployments.tidegate.dev", NAME, "-n", NAMESPACE, "--ignore-not-found"):
        say("the one of an earlier demo is deleted first")
        kubectl("delete", "modeldeployments.tidegate.dev", NAME, "-n", NAMESPACE)
        left = "modelversions,routes.serving.knative.dev,inferenceservices"
        label = f"tidegate.dev/deployment={NAME}"
        await until(lambda: not kubectl("get", left, "-n", NAMESPACE, "-l", label, "-o", "name"), "it is gone")
    apply("v1")
    took = await until(lambda: condition("Ready")["status"] == "True", "v1 is Ready")
    say(f"Ready {took:.1f} s after kubectl apply: {status()['url']}:{os.environ['TIDEGATE_URL_PORT']}")

    title(3, "The held-out rows, as V2 requests from the kserve client")
    right, version = 0, ""
    for chunk in np.array_split(np.arange(len(held_out.rows)), 6):
        labels, version = await client.predict(held_out.rows[chunk])
        right += int(np.sum(np.array(labels) == held_out.labels[chunk]))
    say(f"{right} of {len(held_out.rows)} right ({right / len(held_out.rows):.1%}), answered by {version}")

    title(4, "Nobody asks: it falls to zero. Somebody does: it wakes up")
    took = await until(lambda: pods() == 0, "no pod is left")
    say(f"no pod {took:.0f} s after the last request (window 10 s, idle 5 s, and the time that a pod takes to go)")
    at = time.monotonic()
    await client.predict(held_out.rows[:1])
    say(f"cold start: the next request was answered after {time.monotonic() - at:.1f} s, model fetched and loaded")

    title(5, "Version v2, as fast as the evidence allows, under constant load")
    async with Traffic(client, held_out.rows) as traffic:
        apply("v2")
        shown = ""

        def arrived() -> bool:
            nonlocal shown
            told = status()
            weights = {v["name"]: v["weight"] for v in told.get("versions", []) if v.get("weight")}
            line = "  ".join(f"{name} {weight:>3}%" for name, weight in sorted(weights.items()))
            line += f"  {told['verdict']}" if "verdict" in told else ""
            if line and line != shown:
                if sys.stdout.isatty():
                    print("\r\033[K", end="")
                say(
                    f"{time.monotonic() - began:5.0f} s  {line:<28}  {traffic.sent:>6} requests, "
                    f"{len(traffic.failures)} failed"
                )
                shown = line
            ready = next((c for c in told.get("conditions", []) if c["type"] == "Ready"), {})
            return bool(ready.get("status") == "True" and str(told.get("stable", "")).startswith("v2-"))

        await until(arrived, "v2 is the stable version", 600)
    say(
        f"{traffic.sent} requests while the version changed, failed: {len(traffic.failures)}; "
        f"the slowest took {traffic.slowest:.2f} s; answered by "
        + ", ".join(f"{name}: {count}" for name, count in sorted(traffic.versions.items()))
    )

    title(6, "Back again: tidegate undo")
    async with Traffic(client, held_out.rows) as back:
        await until(lambda: back.versions["v2"] > 50, "requests flow")
        at = time.monotonic()
        say(await asyncio.to_thread(run, sys.executable, "-m", "tidegate", "undo", NAME, "-n", NAMESPACE))
        await until(
            lambda: [v["name"] for v in status().get("versions", []) if v.get("weight")] == ["v1"], "v1 has it all"
        )
        took = time.monotonic() - at
        back.versions.clear()
        await until(lambda: sum(back.versions.values()) > 50, "requests flow")
    say(
        f"all requests went to v1 again {took:.1f} s after the command (its pod was started first); "
        f"{len(back.failures)} failed; since then answered by {', '.join(back.versions)}"
    )

    title(7, "Version v3, which fails a fifth of all requests")
    manifest = DEGRADED.format(name=NAME, image=os.environ["TIDEGATE_IMAGE_FAULTY"])
    print(textwrap.indent(manifest, "    "), end="")
    kubectl("apply", "-n", NAMESPACE, "-f", "-", text=manifest)
    async with Traffic(client, held_out.rows) as bad:
        await until(lambda: condition("Ready").get("reason") == "Degraded", "v3 is proven degraded", 300)
    say(condition("Ready")["message"])
    say(
        f"{len(bad.failures)} of {bad.sent} requests failed until then; {bad.versions['v3']} others were answered by v3"
    )

    title(8, "Which is the best? An A/B/n test of three, by whether the answers turn out right")
    manifest = TEST.format(name=NAME)
    print(textwrap.indent(manifest, "    "), end="")
    kubectl("apply", "-n", NAMESPACE, "-f", "-", text=manifest)
    with Diagnoses(held_out.labels) as diagnoses:
        async with Traffic(client, held_out.rows, diagnoses) as test:
            await until(decided(began), "one version is proven best, and promoted", 600)
    arms = {arm["name"]: arm for arm in status()["experiment"]["arms"]}
    say(
        f"{test.sent} requests, failed: {len(test.failures)}, {diagnoses.reported} of them reported as right or wrong; "
        f"the winner: {status()['experiment'].get('winner')}"
    )

    say()
    for line in (
        'eval "$(make -s env)"                     # leads the shell to this cluster; then:',
        f".venv/bin/tidegate get {NAME}              # versions, weights, and why",
        f".venv/bin/tidegate undo {NAME}             # back to v1, which the spec asks for",
        "kubectl get mdep,mver                      # what there is; kubectl explain mdep.spec.rollout teaches",
        f"kubectl describe mdep {NAME}               # its events",
        f"curl {HOST}:{os.environ['TIDEGATE_URL_PORT']}/v2/models/{NAME}   # its metadata",
    ):
        print(f"    {line}")
    failed = traffic.failures + back.failures + test.failures
    if failed:
        raise Unexpected(f"{len(failed)} requests failed, the first: {failed[0]}")
    if not 0 < len(bad.failures) < 200:
        raise Unexpected(f"{len(bad.failures)} requests to v3 failed; a few should")
    if status()["experiment"].get("winner") != "trees" or arms["stump"].get("out") != "Worse":
        raise Unexpected(f"the test was decided another way than the held-out rows: {arms}")
    if set(back.versions) != {"v1"} or not traffic.versions["v2"]:
        raise Unexpected(f"the wrong version answered: {dict(back.versions)}, {dict(traffic.versions)}")
    say(f"\ndone in {time.monotonic() - began:.0f} s; everything is left up to play with, `make down` removes it")


if __name__ == "__main__":
    with suppress(KeyboardInterrupt):
        try:
            asyncio.run(main())
        except Unexpected as error:
            print(f"\nthe demo failed: {error}", file=sys.stderr)
            sys.exit(1)
