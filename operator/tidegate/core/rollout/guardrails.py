"""Guardrails as the spec gives them, and what the status says of each."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from tidegate.api.base import seconds
from tidegate.api.evidence import Guardrail, GuardrailStatus, Measured, Query, Verdict, fraction
from tidegate.api.rollout import RolloutSpec
from tidegate.core.rollout.counts import Sample
from tidegate.core.rollout.judge import Guard, GuardReport, Report, Settings, time_to_verdict

DEFAULT = (Guardrail.model_validate({"name": "errors", "errors": {}}),)


def guardrails(spec: RolloutSpec) -> Sequence[Guardrail]:
    """The guardrails that hold: those of the spec, or the usual one."""
    return spec.guardrails or DEFAULT


def wants_rewards(spec: RolloutSpec) -> bool:
    """Whether a guardrail is about rewards, which then have to be read."""
    return any(g.reward for g in guardrails(spec))


def settings(spec: RolloutSpec) -> Settings:
    """What the judge has to go by. Queries are not its business: they are plain thresholds."""
    guards = [guard for g in guardrails(spec) if (guard := _guard(g))]
    return Settings(tuple(guards), alpha=spec.risk.false_rollback, beta=spec.risk.false_promotion)


def _guard(given: Guardrail) -> Guard | None:
    if given.errors:
        return Guard.errors(given.name, rho=given.errors.max_ratio, delta=fraction(given.errors.max_increase))
    if given.latency:
        edge = given.latency.slower_than
        return Guard.latency(
            given.name,
            rho=given.latency.max_ratio,
            delta=fraction(given.latency.max_increase),
            edge=seconds(edge) * 1000 if edge else None,
        )
    if given.reward:
        return Guard.reward(given.name, drop=-given.reward.min_delta)
    return None


Bounds = Mapping[str, tuple[bool, float]]
"""Of each query: whether its value is within bounds, and since when (seconds since the epoch)."""


def bounds(spec: RolloutSpec, sample: Sample, before: Bounds) -> dict[str, tuple[bool, float]]:
    """Since when each query's value is within its bounds, or out of them. One without a value begins anew."""
    after: dict[str, tuple[bool, float]] = {}
    for g in guardrails(spec):
        value = sample.values.get(g.name) if g.query else None
        if g.query is None or value is None or not math.isfinite(value):
            continue
        within = (g.query.max is None or value <= g.query.max) and (g.query.min is None or value >= g.query.min)
        known = before.get(g.name)
        after[g.name] = known if known and known[0] == within else (within, sample.t)
    return after


def bounds_read(raw: Mapping[str, Any]) -> dict[str, tuple[bool, float]]:
    """What `bounds` said, from JSON."""
    return {name: (bool(within), since) for name, (within, since) in raw.items()}


def turning(spec: RolloutSpec, since: Bounds, sample: Sample, before: float) -> bool:
    """Whether a query has something new to say: it came within its bounds, or left them, or has been so for long enough
    since `before`, when it was asked last."""
    lasting = {g.name: seconds(g.query.for_) for g in guardrails(spec) if g.query}
    now = bounds(spec, sample, since)
    return now != since or any(before < start + lasting[name] <= sample.t for name, (_, start) in now.items())


def statuses(
    spec: RolloutSpec, report: Report, since: Bounds, sample: Sample, rates: tuple[float, float] | None
) -> list[GuardrailStatus]:
    """What the status says of each guardrail. `since` is what `bounds` said; `rates` are requests per second of the
    candidate and of the stable version, None if they are not known."""
    judged = {guard.name: guard for guard in settings(spec).guards}
    reports = {found.name: found for found in report.guards}
    return [
        _query_told(given.name, given.query, since.get(given.name), sample)
        if given.query
        else _told(reports[given.name], judged[given.name], rates)
        for given in guardrails(spec)
    ]


def _told(g: GuardReport, guard: Guard, rates: tuple[float, float] | None) -> GuardrailStatus:
    binary = g.kind != "reward"
    return GuardrailStatus(
        name=g.name,
        kind=g.kind,
        verdict=g.verdict,
        candidate=Measured(
            count=g.candidate_total, bad=int(g.candidate_bad) if binary else None, rate=short(g.candidate_rate)
        ),
        stable=Measured(count=g.stable_total, bad=int(g.stable_bad) if binary else None, rate=short(g.stable_rate)),
        allowed=short(g.allowed),
        slower_than_ms=g.edge,
        degraded=short(g.e_degraded),
        degraded_at=short(g.needed_degraded),
        healthy=short(g.e_healthy),
        healthy_at=short(g.needed_healthy),
        seconds_left=_left(g, guard, rates) if rates and sum(rates) else None,
        why=g.why[:512],
    )


def _left(told: GuardReport, guard: Guard, rates: tuple[float, float]) -> int | None:
    """Seconds to a verdict if both versions go on as they do."""
    if told.verdict != "Undecided" or told.candidate_rate is None or told.allowed is None:
        return None
    bad = told.candidate_rate > told.allowed
    needed, reached = (told.needed_degraded, told.e_degraded) if bad else (told.needed_healthy, told.e_healthy)
    whole = time_to_verdict(
        guard,
        "Degraded" if bad else "Healthy",
        threshold=10.0**needed,
        candidate_per_s=rates[0],
        stable_per_s=rates[1],
        stable_rate=told.stable_rate or 0.0,
        candidate_rate=told.candidate_rate,
    )
    return None if whole is None else math.ceil(whole * (1 - max(reached, 0.0) / needed))


def _query_told(name: str, query: Query, bound: tuple[bool, float] | None, sample: Sample) -> GuardrailStatus:
    value = sample.values.get(name)
    if bound is None or value is None:
        why = sample.troubles.get(name, "the query has no value")
        return GuardrailStatus(name=name, kind="query", why=why[:512])
    within, since = bound
    lasted = sample.t - since >= seconds(query.for_)
    limits = " and ".join(
        f"{word} {limit}" for word, limit in (("at most", query.max), ("at least", query.min)) if limit is not None
    )
    return GuardrailStatus(
        name=name,
        kind="query",
        verdict=("Healthy" if within else "Degraded") if lasted else "Undecided",
        value=short(value),
        why=f"{value:.4g} {'is' if within else 'should be'} {limits}; {sample.t - since:.0f} s of {query.for_}"[:512],
    )


def verdict(found: Sequence[GuardrailStatus]) -> Verdict:
    """Degraded if any is, Healthy if all are."""
    verdicts = {g.verdict for g in found}
    if "Degraded" in verdicts:
        return "Degraded"
    return "Healthy" if verdicts == {"Healthy"} else "Undecided"


def degraded(found: Sequence[GuardrailStatus]) -> str:
    """Why the evidence condemns the candidate, with its numbers; empty if it does not."""
    told = []
    for g in found:
        if g.verdict != "Degraded":
            continue
        if g.kind == "query":
            told.append(f"{g.name}: {g.why}")
            continue
        what = {"errors": "failed", "latency": f"slower than {g.slower_than_ms} ms", "reward": "mean reward"}[g.kind]
        sure = f"e-value 10^{g.degraded} of 10^{g.degraded_at}"
        if g.kind == "reward":
            told.append(f"{g.name}: {what} {g.candidate.rate}, stable {g.stable.rate} ({sure})")
        else:
            told.append(
                f"{g.name}: {g.candidate.bad} of {g.candidate.count} responses {what}, "
                f"stable {g.stable.bad} of {g.stable.count} ({sure})"
            )
    return "; ".join(told)


def wrong_split(which: str) -> str:
    """What is told where the split check found a mismatch."""
    return (
        f"the requests are not split as asked ({which}): clients that stay with a version, calls to a version's own "
        "URL, or a gateway that does not follow the Route"
    )


def span(seconds_left: float) -> str:
    """Seconds as a person says them."""
    if seconds_left < 90:
        return f"{seconds_left:.0f} s"
    return f"{seconds_left / 60:.0f} min" if seconds_left < 5400 else f"{seconds_left / 3600:.1f} h"


def short(value: float | None) -> float | None:
    """Four digits are enough for a person."""
    return None if value is None or not math.isfinite(value) else float(f"{value:.4g}")
