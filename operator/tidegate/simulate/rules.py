"""Rules that move traffic to a candidate: Tidegate's, those of other tools as their sources have them, and a z-test.

All of them see the same counts every few seconds. Each holds one row per run, and for each the weight that the
candidate has until the next look. No weight falls but to zero.

Flagger and Argo Rollouts look at a success rate over the last minute, once a minute, at weights of 10, 20, 30, 40 and
50 percent:

- Flagger (pkg/controller/scheduler.go, `advanceCanary`, `runCanary`): a passed check raises the weight, or promotes
  where it is the largest; a failed one is counted and holds it. Failed checks are never forgotten, and at the tick
  after as many as the threshold, before the next check, it rolls back. No value (NaN: no requests) is a failed check.
- Argo Rollouts (analysis/analysis.go, `assessMetricFailureInconclusiveOrError`): weights rise by the clock; an
  analysis in the background measures once a minute and aborts at once when more measurements than failureLimit have
  failed, consecutive or not. A NaN does not meet `result >= 0.99`, and a measurement that does not meet the condition
  for success has failed where no condition for failure is given (utils/evaluate/evaluate.go). One that comes at the
  same time as the end of the last pause counts here.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from tidegate.core.rollout import weights
from tidegate.core.rollout.binary import BinaryTest
from tidegate.core.rollout.guards import Guard
from tidegate.core.rollout.weights import RATE_HALF_LIFE, Ramp
from tidegate.simulate.streams import Counts, Floats, Ints, Mask

CHECK = 60.0
STEPS = (10, 20, 30, 40, 50)


class Rule(Protocol):
    """A rule at work on many runs. `weight` is in percent, by run."""

    weight: Ints

    def before(self, counts: Counts, dt: float) -> None:
        """Sees what the stable version served in `dt` seconds before the rollout."""

    def observe(self, counts: Counts, dt: float, on: Mask) -> tuple[Mask, Mask]:
        """Sees a window of the runs that are `on`, sets `weight`, and says which are (promoted, rolled back) now."""


class Method(Protocol):
    """A rule that may be begun."""

    @property
    def name(self) -> str:
        """What it is called in tables."""

    def begin(self, runs: int, rate: float) -> Rule:
        """Begins `runs` rollouts at `rate` requests per second."""

    @property
    def top(self) -> int:
        """Largest weight in percent that it gives a candidate before promotion."""


@dataclass(frozen=True)
class Tidegate:
    """Tidegate's own tests and ramp."""

    name: str = "Tidegate"
    ramp: Ramp = weights.EAGER
    guards: tuple[Guard, ...] = (Guard.errors(),)
    alpha: float = 0.01
    beta: float = 0.05
    budget: float = weights.BUDGET

    @property
    def top(self) -> int:
        """Largest weight in percent that it gives a candidate before promotion."""
        return self.ramp.last

    def begin(self, runs: int, rate: float) -> Rule:
        """Begins `runs` rollouts at `rate` requests per second."""
        return _Tidegate(self, runs, rate)


class _Tidegate:
    """One BinaryTest per guardrail. The rate of requests is measured as the operator does."""

    def __init__(self, method: Tidegate, runs: int, rate: float) -> None:
        self._method = method
        shared = method.alpha / len(method.guards)
        self._tests = [BinaryTest(guard, runs, 1 / shared, 1 / method.beta) for guard in method.guards]
        self._responses, self._over = np.full(runs, rate * RATE_HALF_LIFE), np.full(runs, RATE_HALF_LIFE)
        self._bad, self._total, self._held = np.zeros(runs, np.int64), np.zeros(runs, np.int64), np.zeros(runs)
        # 1% at least, as with risk.beyondBudget: a rollout that does not begin has nothing to show
        self.weight: Ints = np.maximum(weights.first_weight(method.ramp, np.full(runs, rate), method.budget), 1)

    def before(self, counts: Counts, dt: float) -> None:
        on, seconds = np.ones(len(self.weight), bool), np.full(len(self.weight), dt)
        for test in self._tests:
            _, bad = _bad(test.guard, counts)
            test.stable.add(on, seconds, bad.astype(np.float64), counts.stable.astype(np.float64))
        self._measure(counts, dt)

    def observe(self, counts: Counts, dt: float, on: Mask) -> tuple[Mask, Mask]:
        seconds = np.full(len(on), dt)
        n_c, n_s = counts.candidate.astype(np.float64), counts.stable.astype(np.float64)
        for test in self._tests:
            a, b = _bad(test.guard, counts)
            test.observe(on, seconds, a.astype(np.float64), n_c, b.astype(np.float64), n_s)
        self._measure(counts, dt)
        self._bad += counts.candidate_bad
        self._total += counts.candidate
        self._held += dt
        degraded = np.logical_or.reduce([test.degraded for test in self._tests])
        healthy = np.logical_and.reduce([test.healthy_here for test in self._tests])
        incident = np.logical_or.reduce([test.incident for test in self._tests])
        ramp = self._method.ramp
        promoted = weights.promotable(ramp, self.weight, held=self._held, healthy=healthy, incident=incident)
        going = on & ~degraded & ~promoted
        wanted = self.weight.copy()
        wanted[going] = weights.next_weight(
            ramp,
            self.weight[going],
            excess=weights.excess(self._bad[going], self._total[going], self._tests[0].stable.rate()[going]),
            rate=(self._responses / self._over)[going],
            budget=self._method.budget,
            held=self._held[going],
            healthy=healthy[going],
            incident=incident[going],
        )
        changed = wanted != self.weight
        self.weight = wanted
        self._held[changed] = 0.0
        for test in self._tests:
            test.weight_changed(changed)
        return promoted & ~degraded, degraded

    def _measure(self, counts: Counts, dt: float) -> None:
        fade = 0.5 ** (dt / RATE_HALF_LIFE)
        self._responses = self._responses * fade + counts.candidate + counts.stable
        self._over = self._over * fade + dt


def _bad(guard: Guard, counts: Counts) -> tuple[Ints, Ints]:
    """Bad responses of the candidate and of the stable version, as a guardrail sees them."""
    if guard.kind == "latency":
        return counts.candidate_slow, counts.stable_slow
    return counts.candidate_bad, counts.stable_bad


@dataclass(frozen=True)
class Check:
    """What Flagger and Argo Rollouts are asked to look at, once a minute."""

    success: float = 0.99
    """Smallest share of good responses."""
    slow: float | None = None
    """Largest share of slow ones; None: not looked at. A limit on the 99th percentile of the latency is 0.01."""


class _Checked:
    """Counts of the candidate since the last check, and steps of the weight."""

    def __init__(self, check: Check, runs: int) -> None:
        self._check = check
        self._total, self._bad, self._slow = (np.zeros(runs, np.int64) for _ in range(3))
        self._failed = np.zeros(runs, np.int64)
        self._since = 0.0
        self.weight: Ints = np.full(runs, STEPS[0], np.int64)

    def before(self, counts: Counts, dt: float) -> None:
        pass  # only the candidate is looked at

    def _due(self, counts: Counts, dt: float) -> bool:
        self._total += counts.candidate
        self._bad += counts.candidate_bad
        self._slow += counts.candidate_slow
        self._since += dt
        return self._since >= CHECK

    def _passed(self) -> Mask:
        """Judges the minute and begins the next one. Without a request there is no rate, and the check has failed."""
        with np.errstate(invalid="ignore"):
            passed: Mask = (self._total - self._bad) / self._total >= self._check.success
            if self._check.slow is not None:
                passed &= self._slow / self._total <= self._check.slow
        for column in (self._total, self._bad, self._slow):
            column[:] = 0
        self._since = 0.0
        return passed

    def _step(self, rows: Mask) -> None:
        self.weight = np.where(rows, np.minimum(self.weight + STEPS[0], STEPS[-1]), self.weight)


@dataclass(frozen=True)
class Flagger:
    """Flagger's rule: `interval: 60s`, `threshold: 5`, `stepWeight: 10`, `maxWeight: 50`."""

    check: Check = Check()
    threshold: int = 5
    name: str = "Flagger"
    top: int = STEPS[-1]

    def begin(self, runs: int, rate: float) -> Rule:
        """Begins `runs` rollouts."""
        return _Flagger(self, runs)


class _Flagger(_Checked):
    def __init__(self, method: Flagger, runs: int) -> None:
        super().__init__(method.check, runs)
        self._threshold = method.threshold

    def observe(self, counts: Counts, dt: float, on: Mask) -> tuple[Mask, Mask]:
        if not self._due(counts, dt):
            return _nobody(on), _nobody(on)
        rolled_back = self._failed >= self._threshold
        passed = self._passed() & ~rolled_back
        self._failed += ~passed
        promoted = passed & (self.weight >= STEPS[-1])
        self._step(passed)
        return promoted, rolled_back


@dataclass(frozen=True)
class Argo:
    """Argo Rollouts' rule: steps of 10% with pauses of 60 s, background analysis with `failureLimit: 3`."""

    check: Check = Check()
    limit: int = 3
    name: str = "Argo Rollouts"
    top: int = STEPS[-1]

    def begin(self, runs: int, rate: float) -> Rule:
        """Begins `runs` rollouts."""
        return _Argo(self, runs)


class _Argo(_Checked):
    def __init__(self, method: Argo, runs: int) -> None:
        super().__init__(method.check, runs)
        self._limit = method.limit

    def observe(self, counts: Counts, dt: float, on: Mask) -> tuple[Mask, Mask]:
        if not self._due(counts, dt):
            return _nobody(on), _nobody(on)
        self._failed += ~self._passed()
        rolled_back = self._failed > self._limit
        promoted = (self.weight >= STEPS[-1]) & ~rolled_back
        self._step(~rolled_back)
        return promoted, rolled_back


@dataclass(frozen=True)
class NaiveZ:
    """What one might write at first: a z-test on all counts so far at every look, the same steps by the clock."""

    critical: float = 2.3263478740408408
    """One-sided 1%, if one looked once."""
    name: str = "naive z-test"
    top: int = STEPS[-1]

    def begin(self, runs: int, rate: float) -> Rule:
        """Begins `runs` rollouts."""
        return _NaiveZ(self, runs)


class _NaiveZ(_Checked):
    def __init__(self, method: NaiveZ, runs: int) -> None:
        super().__init__(Check(), runs)
        self._critical = method.critical
        self._sums = np.zeros((4, runs))

    def observe(self, counts: Counts, dt: float, on: Mask) -> tuple[Mask, Mask]:
        due = self._due(counts, dt)
        self._sums += [counts.candidate_bad, counts.candidate, counts.stable_bad, counts.stable]
        a, n_c, b, n_s = self._sums
        with np.errstate(divide="ignore", invalid="ignore"):
            pooled = (a + b) / (n_c + n_s)
            z: Floats = (a / n_c - b / n_s) / np.sqrt(pooled * (1 - pooled) * (1 / n_c + 1 / n_s))
        rolled_back = z > self._critical
        promoted = _nobody(on)
        if due:
            self._passed()
            promoted = (self.weight >= STEPS[-1]) & ~rolled_back
            self._step(on & ~rolled_back)
        return promoted, rolled_back


def _nobody(on: Mask) -> Mask:
    return np.zeros_like(on)


def others(check: Check = Check()) -> Sequence[Method]:
    """The rules that Tidegate is compared with."""
    return (Flagger(check), Argo(check), NaiveZ())
