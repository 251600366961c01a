"""The judge: windows of counts go in, a verdict on each guardrail comes out, and it may be asked at any time.

`Judges` holds many independent comparisons, one a row, and works on all of them at once; `Judge` is one row of it, with
a state that goes through JSON. A guardrail is Degraded once it is proven worse than allowed, at alpha shared by all
guardrails and candidates, and then for good; Healthy once it is proven to be allowed, at beta.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import inf, isfinite
from typing import Any

import numpy as np

from tidegate.core.rollout import weights
from tidegate.core.rollout.binary import BinaryTest
from tidegate.core.rollout.counts import Requests, Rewards
from tidegate.core.rollout.evidence import LN10, Bools, Floats
from tidegate.core.rollout.forecast import time_to_verdict
from tidegate.core.rollout.guards import Guard, Kind, Settings, Verdict
from tidegate.core.rollout.latency import choose_edge, edge_read, edge_written
from tidegate.core.rollout.reward import RewardTest
from tidegate.core.rollout.split import SplitCheck
from tidegate.core.rollout.stable import StableModel

__all__ = ["Guard", "GuardReport", "Judge", "Judges", "Report", "Settings", "Windows", "time_to_verdict"]


@dataclass(frozen=True)
class Windows:
    """One window of each row. In all arrays the stable version comes first, the candidate second."""

    dt: Floats
    """Seconds, shape (rows,)."""
    requests: Floats
    """Shape (rows, 2)."""
    errors: Floats
    """Shape (rows, 2)."""
    counted: Bools
    """Rows with a whole window of requests, shape (rows,)."""
    edges: tuple[float, ...] = ()
    """Upper edges of the latency histogram in milliseconds, rising, the last infinite; the same for all rows."""
    latency: Floats | None = None
    """Responses that took at most so long, shape (rows, 2, edges)."""
    rewards: Floats | None = None
    """Count, sum and sum of squares, shape (rows, 2, 3)."""
    rewarded: Bools | None = None
    """Rows with a whole window of rewards, shape (rows,)."""
    cold: Bools | None = None
    """Rows in which a version had no ready replica, shape (rows,)."""
    share: Floats | None = None
    """Share of the requests that was asked for the candidate, in (0, 1); 0 to leave the split unchecked."""


class Judges:
    """Many comparisons of a candidate with its stable version, one a row."""

    def __init__(self, settings: Settings, rows: int) -> None:
        self.settings, self.rows = settings, rows
        degraded = len(settings.guards) * settings.canaries / settings.alpha
        healthy = 1.0 / settings.beta
        self.tests: list[BinaryTest | RewardTest] = [
            (RewardTest if guard.kind == "reward" else BinaryTest)(guard, rows, degraded, healthy)
            for guard in settings.guards
        ]
        self.split = SplitCheck(rows)
        self.stable = StableModel(rows, max((g.delta for g in settings.guards if g.kind == "errors"), default=0.005))
        """The stable version's errors, whether or not a guardrail is about them."""
        self.edge: Floats = np.full((len(settings.guards), rows), np.nan)
        """Edge of each guardrail on latency, in milliseconds; not a number before it is chosen."""
        self.seen: Floats = np.zeros((len(settings.guards), rows, 4))
        """Of each guardrail over all windows: bad and all responses of the stable version, then of the candidate."""
        self.bad: Floats = np.zeros(rows)
        """Errors of the candidate so far."""
        self.total: Floats = np.zeros(rows)
        """Its responses so far."""
        self.histogram: dict[tuple[int, int], dict[float, float]] = {}
        """Latency of the stable version until an edge is chosen, by guardrail and row."""

    def feed_stable(self, windows: Windows) -> None:
        """Windows of the stable version alone, before there is a candidate: what is usual for it."""
        on, dt = windows.counted, windows.dt
        n, errors = windows.requests[:, 0], windows.errors[:, 0]
        self.stable.add(on, dt, errors, n)
        for index, test in enumerate(self.tests):
            if isinstance(test, BinaryTest) and test.guard.kind == "errors":
                test.stable.add(on, dt, errors, n)
            elif isinstance(test, BinaryTest):
                known = on & self._choose_edges(index, test.guard, windows, on)
                test.stable.add(known, dt, self._slow(index, windows)[:, 0], self._timed(windows)[:, 0])

    def observe(self, windows: Windows) -> None:
        """Takes in one window of each row."""
        on, dt = windows.counted, windows.dt
        if windows.share is not None:
            total = windows.requests.sum(axis=1)
            self.split.observe(on & (windows.share > 0.0), windows.share, windows.requests[:, 1], total)
        for index, test in enumerate(self.tests):
            if isinstance(test, RewardTest):
                if windows.rewards is not None and windows.rewarded is not None:
                    self._rewarded(index, test, windows.rewards, windows.rewarded, dt)
                continue
            judged, bad, total, cold = on, windows.errors, windows.requests, None
            if test.guard.kind == "latency":
                judged = on & self._choose_edges(index, test.guard, windows, on)
                bad, total, cold = self._slow(index, windows), self._timed(windows), windows.cold
            stable, candidate = total.T
            test.observe(judged, dt, bad[:, 1], candidate, bad[:, 0], stable, cold)
            counted = judged if cold is None else judged & ~cold
            both = np.stack([bad[:, 0], stable, bad[:, 1], candidate], axis=1)
            self.seen[index] += np.where(counted[:, None], both, 0.0)
        self.bad += np.where(on, windows.errors[:, 1], 0.0)
        self.total += np.where(on, windows.requests[:, 1], 0.0)
        self.stable.add(on, dt, windows.errors[:, 0], windows.requests[:, 0])

    def _rewarded(self, index: int, test: RewardTest, rewards: Floats, on: Bools, dt: Floats) -> None:
        stable, candidate = ((rewards[:, i, 0], rewards[:, i, 1], rewards[:, i, 2]) for i in (0, 1))
        test.observe(on, dt, candidate, stable)
        both = np.stack([stable[1], stable[0], candidate[1], candidate[0]], axis=1)
        self.seen[index] += np.where(on[:, None], both, 0.0)

    def _choose_edges(self, index: int, guard: Guard, windows: Windows, on: Bools) -> Bools:
        """Rows whose edge was known before this window: the window that an edge is chosen from is not judged by it."""
        if windows.latency is None:
            return np.zeros(self.rows, dtype=bool)
        known: Bools = ~np.isnan(self.edge[index])
        for row in np.flatnonzero(on & ~known):
            if guard.edge is not None:  # the next edge of the histogram, so that no response is split
                self.edge[index, row] = next((e for e in windows.edges if guard.edge <= e < inf), np.nan)
                known[row] = not np.isnan(self.edge[index, row])  # beyond the last edge, nothing would ever be slow
                continue
            histogram = self.histogram.setdefault((index, int(row)), {})
            for edge, count in zip(windows.edges, windows.latency[row, 0], strict=True):
                histogram[edge] = histogram.get(edge, 0.0) + float(count)
            if (chosen := choose_edge(histogram, guard.rho, guard.delta)) is not None:
                self.edge[index, row] = chosen
                del self.histogram[index, int(row)]
        return known

    def _timed(self, windows: Windows) -> Floats:
        """Responses whose time is known, shape (rows, 2): a gateway may count and time them at different moments."""
        return np.zeros((self.rows, 2)) if windows.latency is None else windows.latency[:, :, -1]

    def _slow(self, index: int, windows: Windows) -> Floats:
        """Responses slower than the edge, shape (rows, 2); 0 where there is none yet."""
        if windows.latency is None:
            return np.zeros((self.rows, 2))
        edges = np.array(windows.edges)
        at = np.argmax(edges[None, :] >= self.edge[index][:, None], axis=1)  # the first row's where it is unknown
        fast = np.take_along_axis(windows.latency, at[:, None, None], axis=2)[:, :, 0]
        slow: Floats = np.where(np.isnan(self.edge[index])[:, None], 0.0, windows.latency[:, :, -1] - fast)
        return slow

    def weight_changed(self, rows: Bools) -> None:
        """The weights of these rows have changed: each weight proves itself."""
        for test in self.tests:
            test.weight_changed(rows)

    def _any(self, columns: Iterable[Bools]) -> Bools:
        out: Bools = np.zeros(self.rows, dtype=bool)
        for column in columns:
            out |= column
        return out

    @property
    def degraded(self) -> Bools:
        """Rows of which any guardrail is Degraded."""
        return self._any(test.degraded for test in self.tests)

    @property
    def healthy(self) -> Bools:
        """Rows of which every guardrail was ever proven Healthy, and none Degraded."""
        return ~self._any(~test.healthy for test in self.tests) & ~self.degraded

    @property
    def healthy_here(self) -> Bools:
        """Rows of which every guardrail is proven Healthy at the present weight, and none Degraded."""
        return ~self._any(~test.healthy_here for test in self.tests) & ~self.degraded

    @property
    def incident(self) -> Bools:
        """Rows whose stable version is itself in an incident."""
        return self._any(test.incident for test in self.tests)

    def excess(self) -> Floats:
        """How much larger than the stable version's the candidate's share of errors can still be, by row."""
        return weights.excess(self.bad, self.total, self.stable.rate())


@dataclass(frozen=True)
class GuardReport:
    """What is known about one guardrail. E-values and their limits are decimal logarithms."""

    name: str
    kind: Kind
    verdict: Verdict
    candidate_bad: float
    """Bad responses, or the sum of rewards, in all windows that were judged."""
    candidate_total: int
    stable_bad: float
    stable_total: int
    candidate_rate: float | None
    """Share of bad responses, or mean reward; None before there is any."""
    stable_rate: float | None
    allowed: float | None
    """Share of bad responses, or mean reward, that would still be allowed."""
    e_degraded: float
    e_healthy: float
    needed_degraded: float
    needed_healthy: float
    edge: float | None
    """Latency: milliseconds from which a response is slow."""
    healthy_here: bool
    """Proven Healthy since the weights last changed."""
    why: str
    """Why it is undecided, if there is more to say than that evidence is still coming in."""


@dataclass(frozen=True)
class Report:
    """What is known about a candidate."""

    verdict: Verdict
    guards: tuple[GuardReport, ...]
    incident: bool
    """The stable version is in an incident of its own: nothing may be promoted."""
    mismatch: bool
    """The requests are not split as asked."""
    excess: float
    """How much larger than the stable version's its share of errors can still be."""


class Judge:
    """One candidate against the stable version."""

    def __init__(self, settings: Settings, state: Mapping[str, Any] | None = None) -> None:
        """`state` is what `dump` wrote. A guardrail that has changed since begins anew; the others go on."""
        self.settings = settings
        self._all = Judges(settings, 1)
        if not state:
            return
        everything = self._all
        everything.stable.load(0, state["stable"])
        everything.split.load(0, state["split"])
        everything.bad[0], everything.total[0] = state["errors"]
        for index, (guard, test) in enumerate(zip(settings.guards, everything.tests, strict=True)):
            known = state["guards"].get(guard.name)
            if known is None or known["digest"] != self._mark(guard):
                continue
            test.load(0, known["test"])
            everything.seen[index, 0] = known["seen"]
            everything.edge[index, 0] = np.nan if known["edge"] is None else known["edge"]
            if known["histogram"]:
                everything.histogram[index, 0] = {edge_read(e): n for e, n in known["histogram"]}

    def _mark(self, guard: Guard) -> str:
        """Changes with whatever an e-value of the guardrail depends on."""
        others = len(self.settings.guards) * self.settings.canaries
        return f"{guard.digest()}/{self.settings.alpha / others:g}/{self.settings.beta:g}"

    def dump(self) -> dict[str, Any]:
        """The state, for JSON."""
        everything = self._all
        return {
            "stable": everything.stable.dump(0),
            "split": everything.split.dump(0),
            "errors": [float(everything.bad[0]), float(everything.total[0])],
            "guards": {
                guard.name: {
                    "digest": self._mark(guard),
                    "test": test.dump(0),
                    "seen": [float(value) for value in everything.seen[index, 0]],
                    "edge": None if np.isnan(everything.edge[index, 0]) else float(everything.edge[index, 0]),
                    "histogram": [[edge_written(e), n] for e, n in everything.histogram.get((index, 0), {}).items()],
                }
                for index, (guard, test) in enumerate(zip(self.settings.guards, everything.tests, strict=True))
            },
        }

    def observe(
        self,
        dt: float,
        requests: Sequence[Requests] | None,
        rewards: Sequence[Rewards] | None,
        *,
        weight: float | None = None,
        cold: bool = False,
    ) -> None:
        """Takes in one window of `dt` seconds: increments of the stable version and of the candidate, the first two.

        None: that source's window was dropped, or there is no such source. `weight`: percent that was asked for the
        candidate all through the window; None leaves the split unchecked. `cold`: a version had no ready replica.
        """
        self._all.observe(_windows(dt, requests, rewards, weight, cold))

    def feed_stable(self, dt: float, requests: Requests) -> None:
        """A window of the stable version alone, before the candidate gets requests."""
        self._all.feed_stable(_windows(dt, (requests, requests.nothing()), None, None, False))

    def weight_changed(self) -> None:
        """The weights have changed: each weight proves itself."""
        self._all.weight_changed(np.ones(1, dtype=bool))

    def reweighted(self) -> None:
        """The weights have changed by a little, as a bandit's do all the time: only the open block is thrown away.

        To begin anew at each change would use up what is in reserve for a version that turns bad later: after ten
        hours of changes a minute apart, one that begins to fail every fifth request is found in more than an hour, and
        not in minutes.
        """
        for test in self._all.tests:
            test.discard(np.ones(1, dtype=bool))

    def stable_rate(self) -> float:
        """The stable version's present share of errors, as far as it is known."""
        return float(self._all.stable.rate()[0])

    def report(self) -> Report:
        """What is known by now."""
        everything = self._all
        guards = tuple(self._guard(index) for index in range(len(self.settings.guards)))
        verdict: Verdict = "Undecided"
        if everything.degraded[0]:
            verdict = "Degraded"
        elif everything.healthy[0] and guards:
            verdict = "Healthy"
        return Report(
            verdict=verdict,
            guards=guards,
            incident=bool(everything.incident[0]),
            mismatch=bool(everything.split.mismatch[0]),
            excess=float(everything.excess()[0]),
        )

    def _guard(self, index: int) -> GuardReport:
        guard, test = self.settings.guards[index], self._all.tests[index]
        stable_bad, stable_total, bad, total = (float(value) for value in self._all.seen[index, 0])
        verdict: Verdict = "Degraded" if test.degraded[0] else "Healthy" if test.healthy[0] else "Undecided"
        stable_rate = stable_bad / stable_total if stable_total else None
        edge = float(self._all.edge[index, 0])
        if guard.kind == "reward":
            allowed = None if stable_rate is None else stable_rate - guard.drop
        else:
            allowed = None if stable_rate is None and guard.rho else guard.rho * (stable_rate or 0.0) + guard.delta
        what = "rewards" if guard.kind == "reward" else "requests"
        why = ""
        if verdict == "Undecided":
            if guard.kind == "latency" and np.isnan(edge) and guard.edge is not None:
                why = f"no edge of {guard.edge:g} ms or more is counted by; if that stays so, give a lower one"
            elif guard.kind == "latency" and np.isnan(edge):
                why = "too few responses of the stable version yet to say what is slow"
            elif not total:
                why = f"no {what} of the candidate yet"
            elif not stable_total and (guard.rho or guard.kind == "reward"):
                why = f"no {what} of the stable version yet"
        return GuardReport(
            name=guard.name,
            kind=guard.kind,
            verdict=verdict,
            candidate_bad=bad,
            candidate_total=int(total),
            stable_bad=stable_bad,
            stable_total=int(stable_total),
            candidate_rate=bad / total if total else None,
            stable_rate=stable_rate,
            allowed=allowed,
            e_degraded=float(test.bad.log_e()[0] / LN10),
            e_healthy=float(test.ok.log_e()[0] / LN10),
            needed_degraded=float(test.bad.needed[0] / LN10),
            needed_healthy=float(test.ok.needed[0] / LN10),
            edge=edge if isfinite(edge) else None,
            healthy_here=bool(test.healthy_here[0]),
            why=why,
        )


def _windows(
    dt: float,
    requests: Sequence[Requests] | None,
    rewards: Sequence[Rewards] | None,
    weight: float | None,
    cold: bool,
) -> Windows:
    """One window as the only row."""
    both: Sequence[Requests] = requests[:2] if requests else (Requests(), Requests())
    edges = tuple(sorted(both[0].latency)) if both[0].latency.keys() == both[1].latency.keys() else ()
    latency = [[float(version.latency[edge]) for edge in edges] for version in both]
    return Windows(
        dt=np.array([dt]),
        requests=np.array([[float(version.requests) for version in both]]),
        errors=np.array([[float(version.errors) for version in both]]),
        counted=np.array([requests is not None]),
        edges=edges,
        latency=np.array([latency]) if edges else None,
        rewards=np.array([[[float(r.count), r.total, r.squares] for r in rewards]]) if rewards else None,
        rewarded=np.array([True]) if rewards else None,
        cold=np.array([cold]),
        share=np.array([(weight or 0.0) / 100.0]),
    )
