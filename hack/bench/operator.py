"""What it costs to judge many rollouts at once in one operator: `python -m hack.bench.operator`.

The operator's own Reconciler, decisions, queue and metrics, with as many workers as it has, over the little cluster of
tests/world.py, in virtual time: many ModelDeployments whose candidate is judged by errors and latency at one look each
5 s, and as many that rest. Requests come by chance, and candidates fail just less than is allowed, so that a verdict
takes hours and each look adds a block of evidence: as much work as a rollout can be.

What is not in it: the API server, the network, kopf, and reading the gateway's counters. The little cluster plays their
part, and the time that it takes is not counted. In a real operator each pass also reads two objects and each status
write sends one, with JSON and HTTP both ways.

Ends with 1 if a rollout's status is written more than 13 times a minute, or that of a deployment at rest at all.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import json
import multiprocessing
import os
import platform
import resource
import sys
import textwrap
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from itertools import pairwise
from math import inf
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np

from tidegate import __version__
from tidegate.adapters.app import RESYNC, WORKERS
from tidegate.adapters.sources.sampler import INTERVAL
from tidegate.adapters.telemetry import Metrics
from tidegate.core.events import Event
from tidegate.core.observed import Object, Observed
from tidegate.core.rollout.ask import ask
from tidegate.core.rollout.counts import Requests
from tidegate.runtime.queue import Key, KeyQueue
from tidegate.runtime.reconcile import Reconciler

sys.path.append(str(Path(__file__).parents[2] / "tests"))
from virtual import play
from world import World, container

PAGE = Path(__file__).parent / "results" / "operator.md"
MOST_WRITES = 13
"""Status writes of one rollout that a minute may have."""
SETTLED = 60.0
"""Seconds until the first version serves, and again until the second is judged."""
GUARDRAILS = [{"name": "errors", "errors": {}}, {"name": "tail", "latency": {"slowerThan": "250ms"}}]
RATE = 40.0
"""Users' requests per second of one deployment."""
ERRORS = {"v1": 0.005, "v2": 0.011}
"""Share of responses that fail: up to 1.25% is allowed of the candidate."""
SLOWER = {50.0: 0.4, 100.0: 0.2, 250.0: 0.03, 500.0: 0.01}
"""Share of responses that take longer than so many milliseconds, of either version."""


@dataclass
class Deployment(World):
    """One ModelDeployment of many, with requests by chance."""

    namespace: str = "default"
    chance: np.random.Generator = field(default_factory=np.random.default_rng)

    def pass_time(self, now: datetime) -> bool:
        """Lets controllers act and requests come until then. Returns whether a watch would tell of something new."""
        before = self._seen()
        self.react()
        seconds = (now - self.now).total_seconds()
        self.now = now
        revisions = self.of("Revision")
        for revision, percent in self.gateway.items():
            if revision in revisions:
                self._count(revisions[revision], self.chance.poisson(self.rate * seconds * percent / 100))
        return self._seen() != before

    def _seen(self) -> str:
        """What watches on the children tell."""
        return json.dumps([obj.get("status") for (kind, _), obj in self.objects.items() if kind != "ModelDeployment"])

    def _count(self, revision: Object, requests: int) -> None:
        version = revision["metadata"]["labels"]["tidegate.dev/version"]
        before = self.counted.get(version, Requests(latency=dict.fromkeys((*SLOWER, inf), 0)))
        failed = self.chance.binomial(requests, ERRORS[self._version_of(revision)])
        took = self.chance.multinomial(requests, -np.diff([1.0, *SLOWER.values(), 0.0])).cumsum()
        latency = {edge: count + int(new) for (edge, count), new in zip(before.latency.items(), took, strict=True)}
        self.counted[version] = Requests(before.requests + int(requests), before.errors + int(failed), latency)

    def _upsert(self, obj: dict[str, Any], by: str = "kubectl") -> dict[str, Any]:
        return super()._upsert({**obj, "metadata": {"namespace": self.namespace, **obj["metadata"]}}, by)


class Fleet:
    """Many little clusters as one, and the time that they take, which is not the operator's."""

    def __init__(self, queue: KeyQueue, start: datetime, judged: int, resting: int, seed: int) -> None:
        self._queue, self._start = queue, start
        streams = np.random.default_rng(seed).spawn(judged + resting)
        made = [Deployment(namespace=f"ns-{n}", chance=chance, rate=RATE) for n, chance in enumerate(streams)]
        self.all = {Key(each.namespace, "churn"): each for each in made}
        self.judged = list(self.all)[:judged]
        self.outside = 0.0
        """Seconds of CPU that the little clusters have taken."""
        self.status_writes: dict[Key, list[float]] = {key: [] for key in self.all}
        """When the status of each was written."""

    @contextmanager
    def elsewhere(self) -> Iterator[None]:
        """What is done meanwhile is not the operator's work."""
        begun = time.thread_time()
        try:
            yield
        finally:
            self.outside += time.thread_time() - begun

    def now(self) -> datetime:
        """The operator's clock: whole seconds."""
        return self._start + timedelta(seconds=int(asyncio.get_running_loop().time()))

    def submit(self, keys: Sequence[Key], version: str) -> None:
        """A user applies a spec of that version."""
        with self.elsewhere():
            for key in keys:
                self.all[key].submit(container(version, rollout={"guardrails": GUARDRAILS, "deadline": "24h"}))
                self._queue.add(key)

    def pass_time(self) -> None:
        """Controllers and users act, and the watches tell of what has changed."""
        with self.elsewhere():
            for key, each in self.all.items():
                if each.pass_time(self.now()):
                    self._queue.add(key)

    # --- runtime.reconcile.Source and runtime.write.Cluster ---

    async def gather(self, key: Key) -> Observed | None:
        with self.elsewhere():
            return await self.all[key].gather(key)

    async def apply(self, obj: Mapping[str, Any], subresource: str | None = None) -> Object:
        with self.elsewhere():
            key = Key(obj["metadata"]["namespace"], "churn")
            if obj["kind"] == "ModelDeployment":
                self.status_writes[key].append(asyncio.get_running_loop().time())
            before = self.all[key].changes
            result: Object = await self.all[key].apply(obj, subresource)
            if self.all[key].changes != before:
                self._queue.add(key)  # the watch tells the operator of its own writes too
            return result

    async def delete(self, obj: Object) -> None:
        with self.elsewhere():
            await self.all[Key(obj["metadata"]["namespace"], "churn")].delete(obj)

    async def announce(self, about: Object, event: Event) -> None:
        """Events are lost."""


@dataclass(frozen=True)
class Found:
    """What came of one run."""

    judged: int
    resting: int
    minutes: float
    """Virtual minutes that were measured."""
    rounds: tuple[float, ...]
    """Seconds of CPU that the operator took from each look to the next."""
    judging: float
    """Rollouts that were judged, on average over the looks."""
    writes: int
    """Status writes of the rollouts."""
    most_writes: int
    """Status writes of one rollout within any one minute."""
    resting_writes: int
    """Status writes of all deployments at rest."""
    status_bytes: int
    """Bytes of the largest status, as JSON."""
    made: int
    """Bytes by which the process grew from nothing to rollouts that are judged, the little clusters in it."""
    grown: int
    """Bytes by which it grew while it was measured."""

    @property
    def share(self) -> float:
        """Share of one core: a round's time over that between two looks."""
        return fmean(self.rounds) / INTERVAL


def most_within(times: Sequence[float], seconds: float = 60.0) -> int:
    """The most of the times, in order, that fall within so many seconds, the end of which is not in it."""
    most = first = 0
    for last, t in enumerate(times):
        while t - times[first] >= seconds:
            first += 1
        most = max(most, last - first + 1)
    return most


def faults(found: Found) -> list[str]:
    """What is not as it is promised."""
    out = []
    if found.most_writes > MOST_WRITES:
        out.append(f"the status of a rollout was written {found.most_writes} times within a minute")
    if found.resting_writes:
        out.append(f"the status of deployments at rest was written {found.resting_writes} times")
    if found.judging < 0.9 * found.judged:
        out.append(f"of {found.judged} rollouts only {found.judging:.0f} were being judged: too few to say anything")
    return out


def _resident() -> int:
    gc.collect()
    return int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1]) * resource.getpagesize()


async def _story(judged: int, resting: int, minutes: float, seed: int) -> Found:
    loop, empty = asyncio.get_running_loop(), _resident()
    queue = KeyQueue()
    fleet = Fleet(queue, datetime.fromisoformat("2026-01-01T00:00:00+00:00"), judged, resting, seed)
    reconciler = Reconciler(fleet, fleet, Metrics(queue), fleet.now, queue)
    marks: list[tuple[float, int]] = []  # at each look: CPU so far, rollouts that are judged

    async def look() -> None:
        while True:
            fleet.pass_time()
            asked = [key for key, each in fleet.all.items() if ask(each.deployment)]
            for key in asked:
                queue.add(key)
            marks.append((time.thread_time() - fleet.outside, len(asked)))
            await asyncio.sleep(INTERVAL)

    async def resync() -> None:
        while True:
            for key in fleet.all:
                queue.add(key)
            await asyncio.sleep(RESYNC)

    fleet.submit(list(fleet.all), "v1")
    tasks = [asyncio.create_task(each) for each in (look(), resync(), *(reconciler.work() for _ in range(WORKERS)))]
    await asyncio.sleep(SETTLED)
    fleet.submit(fleet.judged, "v2")
    await asyncio.sleep(SETTLED - 0.5)
    begun, first, made = loop.time(), len(marks), _resident()
    await asyncio.sleep(60 * minutes)
    for task in tasks:
        task.cancel()
    for ended in await asyncio.gather(*tasks, return_exceptions=True):
        if not isinstance(ended, asyncio.CancelledError):
            raise RuntimeError("a task of the operator ended by itself") from ended
    seen = marks[first:]
    writes = {key: [t for t in times if t >= begun] for key, times in fleet.status_writes.items()}
    of_judged = [writes.pop(key) for key in fleet.judged]
    sizes = [len(json.dumps(fleet.all[key].deployment["status"])) for key in fleet.judged or fleet.all]
    return Found(
        judged=judged,
        resting=resting,
        minutes=minutes,
        rounds=tuple(after - before for (before, _), (after, _) in pairwise(seen)),
        judging=fmean(count for _, count in seen),
        writes=sum(map(len, of_judged)),
        most_writes=max(map(most_within, of_judged), default=0),
        resting_writes=sum(map(len, writes.values())),
        status_bytes=max(sizes),
        made=made - empty,
        grown=_resident() - made,
    )


def measure(judged: int, resting: int, minutes: float, seed: int = 1) -> Found:
    """So many rollouts that are judged, beside so many deployments at rest, for so many virtual minutes."""
    return play(_story(judged, resting, minutes, seed))


def page(rest: Found, runs: Sequence[Found]) -> str:
    """The results, as Markdown. `rest` has no rollouts; of `runs` the first has the fewest, the last the most."""
    few, most = runs[0], runs[-1]
    resting = rest.share / rest.resting
    rows: list[Sequence[str]] = [
        (
            "rollouts, all judged",
            "CPU of one, s per hour",
            "a round over all, of the 5 s between looks",
            "the worst round",
            "status writes of one a minute",
            "most in any minute",
        ),
        ["---"] * 6,
    ]
    rows += [
        (
            f"{found.judged}",
            f"{3600 * (found.share - resting * found.resting) / found.judged:.2f}",
            f"{100 * found.share:.1f}%",
            f"{100 * max(found.rounds) / INTERVAL:.1f}%",
            f"{found.writes / found.judged / found.minutes:.2f}",
            f"{found.most_writes}",
        )
        for found in runs
    ]
    each = (most.made - few.made) / (most.judged + most.resting - few.judged - few.resting) / 1024
    grown = max(0, most.grown) / most.judged / 1024
    parts = (
        "# The operator's cost of judging",
        f"""Made by `make bench-operator` with Tidegate {__version__} and Python {platform.python_version()}, on one of
        {os.cpu_count()} cores that others used too: times differ from run to run by a third, counts do not. The
        operator's own Reconciler, decisions, queue and metrics, with {WORKERS} workers, in virtual time. A little
        cluster plays everything else, and its time is not counted: **no API server, no network, no kopf and no reading
        of the gateway is in these figures.**""",
        f"""Each rollout is judged by errors and latency at one look each {INTERVAL:.0f} s, {RATE:.0f} requests/s, its
        candidate just within what is allowed, so that each look adds evidence and none decides, for {most.minutes:g}
        minutes. Beside the rollouts there are as many deployments at rest. The second pass that the watch asks for
        after each status write is in the time.""",
        "\n".join(f"| {' | '.join(row)} |" for row in rows),
        f"""A deployment at rest ({rest.resting} of them alone, for {rest.minutes:.0f} minutes) takes
        {3600 * resting:.3f} s of CPU per hour and {rest.resting_writes} status writes. The largest status of a rollout
        is {most.status_bytes} bytes of JSON. Memory: {each:.0f} KiB for each deployment, half of them judged, with its
        objects in the little cluster, which stand for those in kopf's indexes; {grown:.1f} KiB more for each rollout
        after {most.minutes:g} minutes of judging.""",
        f"Promised: at most {MOST_WRITES} status writes a minute for a rollout that is judged, none at rest.",
    )
    return "\n\n".join(part if part.startswith("|") else _filled(part) for part in parts) + "\n"


def _filled(text: str) -> str:
    return textwrap.fill(" ".join(text.split()), 120, break_long_words=False, break_on_hyphens=False)


def main() -> int:
    """Runs the cases, each in a process of its own, and writes the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rollouts", type=int, default=200, help="rollouts at once, at most")
    parser.add_argument("--minutes", type=float, default=5.0, help="virtual minutes of each run")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--output", type=Path, default=PAGE, help="the page to write")
    options = parser.parse_args()
    counts = sorted({max(1, options.rollouts // part) for part in (8, 2, 1)})
    cases = [(0, options.rollouts, 60.0), *((count, count, options.minutes) for count in counts)]
    found: list[Found] = []
    for judged, resting, minutes in cases:
        with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as fresh:
            began = time.monotonic()
            found.append(fresh.submit(measure, judged, resting, minutes, options.seed).result())
            print(f"{judged} judged, {resting} at rest: {time.monotonic() - began:.0f} s", file=sys.stderr)
    text = page(found[0], found[1:])
    options.output.write_text(text, encoding="utf-8")
    print(text)
    wrong = [fault for each in found for fault in faults(each)]
    for fault in wrong:
        print(f"error: {fault}", file=sys.stderr)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
