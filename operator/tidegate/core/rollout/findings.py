"""What a rollout has found out about its candidate: samples go in, evidence comes out, the status remembers it.

sample ── since the last ──► window ──► judge ──► verdict of each guardrail ──► Evidence for `advance`
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

from tidegate.api.base import seconds
from tidegate.api.evidence import Guardrail, GuardrailStatus, Measured, Query, Verdict, fraction
from tidegate.api.rollout import RolloutSpec, RolloutStatus
from tidegate.core.rollout import weights
from tidegate.core.rollout.advance import Evidence
from tidegate.core.rollout.counts import Count, Reading, Requests, Rewards, Sample
from tidegate.core.rollout.judge import Guard, GuardReport, Judge, Report, Settings, time_to_verdict
from tidegate.core.rollout.latency import edge_read, edge_written

IDLE = 60.0
"""Seconds after which a reading without a single new request is written down all the same."""
_NONE = 0.01
"""Requests per second that are as good as none: there is no more news in their absence."""
DEFAULT = (Guardrail.model_validate({"name": "errors", "errors": {}}),)


def guardrails(spec: RolloutSpec) -> Sequence[Guardrail]:
    """The guardrails that hold: those of the spec, or the usual one."""
    return spec.guardrails or DEFAULT


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


@dataclass
class State:
    """What has to be remembered from one sample to the next."""

    requests: Reading[Requests] | None = None
    rewards: Reading[Rewards] | None = None
    judge: dict[str, Any] | None = None
    responses: float = 0.0
    """Recent requests of both versions, and"""
    over: float = 0.0
    """the seconds that they came in, both fading with age."""
    t: float = 0.0
    """When the last sample that was taken in was read."""
    cold: bool = False
    bounds: dict[str, tuple[bool, float]] = field(default_factory=dict)
    """Of each query: whether its value is within bounds, and since when (seconds since the epoch)."""

    @property
    def rate(self) -> float | None:
        """Requests per second of late; None if nothing has been counted yet."""
        return self.responses / self.over if self.over else None

    def dump(self) -> str:
        """As JSON."""
        whole = {
            "requests": _reading(self.requests),
            "rewards": _reading(self.rewards),
            "judge": self.judge,
            "rate": [round(self.responses, 4), round(self.over, 4)],
            "t": self.t,
            "cold": self.cold,
            "bounds": self.bounds,
        }
        return json.dumps({key: value for key, value in whole.items() if value}, separators=(",", ":"))

    @classmethod
    def load(cls, text: str) -> State:
        """From JSON; a new state from an empty text."""
        raw = json.loads(text or "{}")
        responses, over = raw.get("rate", (0.0, 0.0))
        return cls(
            requests=_requests(raw.get("requests")),
            rewards=_rewards(raw.get("rewards")),
            judge=raw.get("judge"),
            responses=responses,
            over=over,
            t=raw.get("t", 0.0),
            cold=raw.get("cold", False),
            bounds={name: (bool(within), since) for name, (within, since) in raw.get("bounds", {}).items()},
        )


def _reading(reading: Reading[Requests] | Reading[Rewards] | None) -> dict[str, Any] | None:
    if reading is None:
        return None
    versions: dict[str, list[Any]] = {}
    for version, counts in reading.versions.items():
        if isinstance(counts, Requests):
            edges = [[edge_written(edge), n] for edge, n in counts.latency.items()]
            versions[version] = [counts.requests, counts.errors, edges]
        else:
            versions[version] = [counts.count, counts.total, counts.squares]
    return {"t": reading.t, "mark": reading.mark, "versions": versions}


def _requests(raw: Mapping[str, Any] | None) -> Reading[Requests] | None:
    if raw is None:
        return None
    versions = {
        version: Requests(requests, errors, {edge_read(edge): n for edge, n in latency})
        for version, (requests, errors, latency) in raw["versions"].items()
    }
    return Reading(raw["t"], versions, raw["mark"])


def _rewards(raw: Mapping[str, Any] | None) -> Reading[Rewards] | None:
    if raw is None:
        return None
    return Reading(raw["t"], {version: Rewards(*values) for version, values in raw["versions"].items()}, raw["mark"])


def observe(
    rollout: RolloutStatus, spec: RolloutSpec, sample: Sample | None, *, in_force: bool, cold: bool
) -> RolloutStatus:
    """The rollout with what a sample adds to it. One that was seen before adds nothing.

    `in_force`: the gateway splits the requests as the rollout asks. `cold`: a version that requests go to has no
    replica ready.
    """
    state = State.load(rollout.state)
    if sample is None or not _news(rollout, state, spec, sample, cold):
        return rollout
    judge = Judge(settings(spec), state.judge)
    both = (rollout.stable, rollout.candidate)
    requests, took = _window(state.requests, sample.requests, both)
    rewards, took_too = _window(state.rewards, sample.rewards, both) if sample.rewards else (None, 0.0)
    if requests:
        fade = 0.5 ** (took / weights.RATE_HALF_LIFE)
        state.responses = state.responses * fade + sum(counts.requests for counts in requests)
        state.over = state.over * fade + took
    if rollout.weight and (requests or rewards):
        share = float(rollout.weight) if in_force else None
        judge.observe(took or took_too, requests, rewards, weight=share, cold=cold or state.cold)
    elif requests:
        judge.feed_stable(took, requests[0])

    state.judge = judge.dump()
    if not sample.requests.trouble:
        state.requests = sample.requests
    if sample.rewards and not sample.rewards.trouble:
        state.rewards = sample.rewards
    state.bounds = _bounds(spec, sample, state.bounds)
    cold_starts = rollout.cold_starts + int(bool(rollout.weight) and cold and not state.cold)
    state.cold, state.t = cold, sample.t
    report = judge.report()
    found = [_told(g, report, state, sample, judge.settings, rollout.weight) for g in guardrails(spec)]
    return rollout.model_copy(
        update={
            "state": state.dump(),
            "rate": _short(state.rate),
            "doubt": (_trouble(spec, sample) or _mismatch(report, rollout))[:1024],
            "cold_starts": cold_starts,
            "forecast": rollout.forecast if rollout.weight else _forecast(spec, judge, state),
            "guardrails": found,
            "verdict": _verdict(found),
        }
    )


def restart(rollout: RolloutStatus, spec: RolloutSpec) -> RolloutStatus:
    """The rollout after its weight was changed: each weight proves itself."""
    if not rollout.state:
        return rollout
    state = State.load(rollout.state)
    judge = Judge(settings(spec), state.judge)
    judge.weight_changed()
    state.judge, state.bounds = judge.dump(), {}
    return rollout.model_copy(update={"state": state.dump()})


def _news(rollout: RolloutStatus, state: State, spec: RolloutSpec, sample: Sample, cold: bool) -> bool:
    """Whether a sample is worth writing down: an idle model's status is not rewritten every few seconds."""
    if sample.t <= state.t:
        return False
    trouble = _trouble(spec, sample)
    if not rollout.weight and state.rate is not None and trouble == rollout.doubt:
        # a candidate without requests may wait for days, for a pod or for a person: what is usual is known by then
        return not spec.paused and sample.t - state.t >= IDLE and state.rate > _NONE
    if state.rate is None or cold != state.cold or any(g.query for g in guardrails(spec)):
        return trouble != rollout.doubt or not trouble
    if trouble or rollout.doubt:
        return trouble != rollout.doubt
    if sample.t - state.t >= IDLE and state.rate > _NONE:
        return True
    seen = (sample.requests.mark, sample.requests.versions, sample.rewards and sample.rewards.versions)
    return state.requests is None or seen != (
        state.requests.mark,
        state.requests.versions,
        state.rewards and state.rewards.versions,
    )


def _trouble(spec: RolloutSpec, sample: Sample) -> str:
    """Why what was read cannot be relied on; empty if it can."""
    if sample.requests.trouble:
        return sample.requests.trouble
    if any(g.reward for g in guardrails(spec)):
        if sample.rewards is None:
            return "a guardrail asks for rewards, and there is no source of them"
        return sample.rewards.trouble
    return ""


def _window(
    before: Reading[Count] | None, after: Reading[Count], versions: tuple[str, str]
) -> tuple[tuple[Count, Count] | None, float]:
    """Increments of both versions since the last whole reading, and the seconds between; None for a dropped window."""
    new = after.since(before) if before else None
    if before is None or not new:
        return None, 0.0
    any_of_them = next(iter(new.values()))
    stable, candidate = (new.get(version, any_of_them.nothing()) for version in versions)
    return (stable, candidate), after.t - before.t


def _bounds(
    spec: RolloutSpec, sample: Sample, before: Mapping[str, tuple[bool, float]]
) -> dict[str, tuple[bool, float]]:
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


def _told(
    guardrail: Guardrail, report: Report, state: State, sample: Sample, by: Settings, weight: int
) -> GuardrailStatus:
    """What the status says of one guardrail."""
    if guardrail.query:
        return _query_told(guardrail.name, guardrail.query, state.bounds.get(guardrail.name), sample)
    g = next(g for g in report.guards if g.name == guardrail.name)
    binary = g.kind != "reward"
    return GuardrailStatus(
        name=g.name,
        kind=g.kind,
        verdict=g.verdict,
        candidate=Measured(
            count=g.candidate_total, bad=int(g.candidate_bad) if binary else None, rate=_short(g.candidate_rate)
        ),
        stable=Measured(count=g.stable_total, bad=int(g.stable_bad) if binary else None, rate=_short(g.stable_rate)),
        allowed=_short(g.allowed),
        slower_than_ms=g.edge,
        degraded=_short(g.e_degraded),
        degraded_at=_short(g.needed_degraded),
        healthy=_short(g.e_healthy),
        healthy_at=_short(g.needed_healthy),
        seconds_left=_left(g, next(x for x in by.guards if x.name == g.name), state.rate, weight),
        why=g.why[:512],
    )


def _left(told: GuardReport, guard: Guard, rate: float | None, weight: int) -> int | None:
    """Seconds to a verdict if both versions go on as they do."""
    if told.verdict != "Undecided" or not rate or told.candidate_rate is None or told.allowed is None:
        return None
    bad = told.candidate_rate > told.allowed
    needed, reached = (told.needed_degraded, told.e_degraded) if bad else (told.needed_healthy, told.e_healthy)
    whole = time_to_verdict(
        guard,
        "Degraded" if bad else "Healthy",
        threshold=10.0**needed,
        candidate_per_s=rate * weight / 100,
        stable_per_s=rate * (100 - weight) / 100,
        stable_rate=told.stable_rate or 0.0,
        candidate_rate=told.candidate_rate,
    )
    return None if whole is None else math.ceil(whole * (1 - max(reached, 0.0) / needed))


def _forecast(spec: RolloutSpec, judge: Judge, state: State) -> str:
    """How long verdicts on errors would take at the present rate, said before the candidate gets a request."""
    guard = next((guard for guard in judge.settings.guards if guard.kind == "errors"), None)
    if guard is None or state.rate is None:
        return ""
    if state.rate < _NONE:
        return "no requests now: there will be no verdict until some come"
    share = judge.stable_rate()
    last = max((step.weight for step in spec.steps if step.weight and step.weight < 100), default=0)
    weight = last or weights.RAMPS[spec.pace].last
    split: dict[str, Any] = {
        "candidate_per_s": state.rate * weight / 100,
        "stable_per_s": state.rate * (100 - weight) / 100,
        "stable_rate": share,
    }
    healthy = time_to_verdict(guard, "Healthy", threshold=1 / judge.settings.beta, candidate_rate=share, **split)
    threshold = len(judge.settings.guards) / judge.settings.alpha
    found = time_to_verdict(guard, "Degraded", threshold=threshold, candidate_rate=2 * share, **split)
    allowed = guard.rho * share + guard.delta
    told = [f"at {state.rate:.3g} requests/s and {weight}%"]
    told.append(f"a version as good as the stable one is proven in about {_span(healthy)}" if healthy else "")
    if 2 * share <= allowed:
        told.append(
            f"a doubling of errors ({share:.2%}) is within the {allowed:.2%} that is allowed; a smaller "
            "maxIncrease would tell it"
        )
    else:
        told.append(f"a doubling of errors ({share:.2%}) is found in about {_span(found)}" if found else "")
    if healthy and healthy > seconds(spec.deadline):
        told.append("longer than rollout.deadline: a larger maxIncrease, or more traffic, would help")
    return "; ".join(part for part in told if part)


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
        value=_short(value),
        why=f"{value:.4g} {'is' if within else 'should be'} {limits}; {sample.t - since:.0f} s of {query.for_}"[:512],
    )


def _verdict(found: Sequence[GuardrailStatus]) -> Verdict:
    """Degraded if any is, Healthy if all are."""
    verdicts = {g.verdict for g in found}
    if "Degraded" in verdicts:
        return "Degraded"
    return "Healthy" if verdicts == {"Healthy"} else "Undecided"


def _mismatch(report: Report, rollout: RolloutStatus) -> str:
    if not report.mismatch:
        return ""
    return (
        f"the requests are not split as asked ({rollout.weight}% for the candidate): clients that stay with a version, "
        "calls to a version's own URL, or a gateway that does not follow the Route"
    )


def evidence(rollout: RolloutStatus, spec: RolloutSpec, now: float) -> Evidence:
    """What follows from it all for the candidate's weight. `now` is in seconds since the epoch."""
    state = State.load(rollout.state)
    deadline = timedelta(seconds=seconds(spec.deadline))
    if state.requests is None or state.rate is None:
        says = "counting has only just begun"
        return Evidence(doubt=rollout.doubt, counting=True, weight=rollout.weight, says=says, deadline=deadline)
    report = Judge(settings(spec), state.judge).report()
    proven = rollout.verdict == "Healthy" and all(g.healthy_here for g in report.guards)
    held = now - rollout.since.timestamp() if rollout.since else 0.0
    allowed = weights.allowed(
        rollout.weight,
        excess=report.excess,
        rate=state.rate,
        budget=spec.risk.bad_responses,
        held=held,
        healthy=proven,
        incident=report.incident,
        pace=spec.pace,
    )
    if not spec.steps:  # without steps of the user's own, the ramp says how long the last weight is held at least
        proven = bool(
            weights.promotable(
                weights.RAMPS[spec.pace], rollout.weight, held=held, healthy=proven, incident=report.incident
            )
        )
    return Evidence(
        healthy=proven and not report.incident and not rollout.doubt,
        weight=allowed or int(spec.risk.beyond_budget),
        doubt=rollout.doubt,
        short="" if allowed or spec.risk.beyond_budget else _short_of(state.rate, spec),
        says=_says(rollout, report),
        deadline=deadline,
    )


def _says(rollout: RolloutStatus, report: Report) -> str:
    """The evidence in one line."""
    told = []
    for g in rollout.guardrails:
        counts = ""
        if g.candidate.bad is not None:
            counts = f" {g.candidate.bad} of {g.candidate.count} (stable {g.stable.bad} of {g.stable.count})"
        elif g.kind == "reward":
            counts = f" mean {g.candidate.rate} of {g.candidate.count} (stable {g.stable.rate} of {g.stable.count})"
        left = f", about {_span(g.seconds_left)} to go" if g.seconds_left else ""
        told.append(f"{g.name}{counts} {g.verdict}{left}" + (f" ({g.why})" if g.why else ""))
    if report.incident:
        told.append("the stable version fails more than usual: nothing is promoted during an incident")
    return "; ".join(told)


def degraded(rollout: RolloutStatus) -> str:
    """Why the evidence condemns the candidate, with its numbers; empty if it does not."""
    told = []
    for g in rollout.guardrails:
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


def _short_of(rate: float, spec: RolloutSpec) -> str:
    """What to do where one percent of the traffic is too much to risk."""
    cost = math.ceil(2 * rate * weights.REACT * 0.01)
    return (
        f"1% of {rate:.0f} requests/s may cost {cost // 2} bad responses before a bad version can be noticed, more "
        f"than half of risk.badResponses ({spec.risk.bad_responses}); raise that to {cost}, or set risk.beyondBudget "
        "to begin at 1% all the same"
    )


def _span(seconds_left: float) -> str:
    """Seconds as a person says them."""
    if seconds_left < 90:
        return f"{seconds_left:.0f} s"
    return f"{seconds_left / 60:.0f} min" if seconds_left < 5400 else f"{seconds_left / 3600:.1f} h"


def _short(value: float | None) -> float | None:
    """Four digits are enough for a person."""
    return None if value is None or not math.isfinite(value) else float(f"{value:.4g}")
