"""What a rollout has found out about its candidate: samples go in, evidence comes out, the status remembers it.

sample ── since the last ──► window ──► judge ──► verdict of each guardrail ──► Evidence for `advance`
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

from tidegate.api.base import seconds
from tidegate.api.rollout import RolloutSpec, RolloutStatus
from tidegate.core.rollout import weights
from tidegate.core.rollout.advance import Evidence
from tidegate.core.rollout.counting import NONE, Counting, compact
from tidegate.core.rollout.counts import Sample
from tidegate.core.rollout.guardrails import (
    bounds,
    bounds_read,
    settings,
    short,
    span,
    statuses,
    turning,
    verdict,
    wants_rewards,
    wrong_split,
)
from tidegate.core.rollout.judge import Judge, Report, time_to_verdict

FOUND = ("state", "rate", "doubt", "cold_starts", "forecast", "guardrails", "verdict")
"""What `observe` writes of a rollout."""


@dataclass
class State:
    """What has to be remembered from one sample to the next."""

    counting: Counting = field(default_factory=Counting)
    judge: dict[str, Any] | None = None
    cold: bool = False
    bounds: dict[str, tuple[bool, float]] = field(default_factory=dict)
    line: str = ""
    """The ledger's last line about the rollout, by its id."""

    def dump(self) -> str:
        """As JSON."""
        own = {"judge": self.judge, "cold": self.cold, "bounds": self.bounds, "line": self.line}
        return compact(self.counting.dump() | own)

    @classmethod
    def load(cls, text: str) -> State:
        """From JSON; a new state from an empty text."""
        raw = json.loads(text or "{}")
        return cls(
            counting=Counting.load(raw),
            judge=raw.get("judge"),
            cold=raw.get("cold", False),
            bounds=bounds_read(raw.get("bounds", {})),
            line=raw.get("line", ""),
        )


def observe(
    rollout: RolloutStatus, spec: RolloutSpec, sample: Sample | None, *, in_force: bool, cold: bool
) -> RolloutStatus:
    """The rollout with what a sample adds to it. One that was seen before adds nothing.

    `in_force`: the gateway splits the requests as the rollout asks. `cold`: a version that requests go to has no
    replica ready.
    """
    reference = rollout.baseline or rollout.stable
    versions = dict.fromkeys((reference, rollout.candidate, rollout.stable))
    state = State.load(rollout.state)
    if sample is None or not sample.answers(versions, rewards=wants_rewards(spec)):
        return rollout
    doubt = state.counting.doubt(sample, rewards=wants_rewards(spec))
    if not _news(rollout, state, spec, sample, doubt, cold):
        return rollout
    judge = Judge(settings(spec), state.judge)
    window = state.counting.take(sample, versions, doubt)
    compared = baseline_weight(rollout.weight) if rollout.baseline else 100 - rollout.weight
    if rollout.weight and compared and (window.requests or window.rewards):
        drawn = in_force and spec.assignment == "Request"
        share = 100 * rollout.weight / (rollout.weight + compared) if drawn else None
        judge.observe(window.seconds, window.requests, window.rewards, weight=share, cold=cold or state.cold)
    elif window.requests and not rollout.weight:
        judge.feed_stable(window.seconds, window.requests[-1] if rollout.baseline else window.requests[0])

    state.judge = judge.dump()
    state.bounds = bounds(spec, sample, state.bounds)
    cold_starts = rollout.cold_starts + int(bool(rollout.weight) and cold and not state.cold)
    state.cold = cold
    report = judge.report()
    if report.mismatch:
        doubt = doubt or wrong_split(f"{rollout.weight}% for the candidate")
    rate = state.counting.rate
    rates = None if rate is None else (rate * rollout.weight / 100, rate * compared / 100)
    found = statuses(spec, report, state.bounds, sample, rates)
    return rollout.model_copy(
        update={
            "state": state.dump(),
            "rate": short(state.counting.rate),
            "doubt": doubt[:1024],
            "cold_starts": cold_starts,
            "forecast": rollout.forecast if rollout.weight else _forecast(spec, judge, state.counting.rate),
            "guardrails": found,
            "verdict": verdict(found),
        }
    )


def baseline_weight(weight: int) -> int:
    """Percent for a baseline beside a candidate with so many: as many, as long as there is room for both."""
    return weight if weight <= 50 else 0


def noted(state: str, line: str) -> str:
    """A state, with the ledger's last line."""
    known = State.load(state)
    known.line = line
    return known.dump()


def restart(rollout: RolloutStatus, spec: RolloutSpec) -> RolloutStatus:
    """The rollout after its weight was changed: each weight proves itself."""
    if not rollout.state:
        return rollout
    state = State.load(rollout.state)
    judge = Judge(settings(spec), state.judge)
    judge.weight_changed()
    state.judge, state.bounds = judge.dump(), {}
    return rollout.model_copy(update={"state": state.dump()})


def _news(rollout: RolloutStatus, state: State, spec: RolloutSpec, sample: Sample, doubt: str, cold: bool) -> bool:
    """Whether a sample is worth writing down."""
    return state.counting.news(
        sample,
        said=doubt,
        waiting=not rollout.weight,
        paused=spec.paused,
        changed=cold != state.cold or turning(spec, state.bounds, sample, state.counting.t),
    )


def _forecast(spec: RolloutSpec, judge: Judge, rate: float | None) -> str:
    """How long verdicts on errors would take at the present rate, said before the candidate gets a request."""
    guard = next((guard for guard in judge.settings.guards if guard.kind == "errors"), None)
    if guard is None or rate is None:
        return ""
    if rate < NONE:
        return "no requests now: there will be no verdict until some come"
    share = judge.stable_rate()
    last = max((step.weight for step in spec.steps if step.weight and step.weight < 100), default=0)
    weight = last or weights.RAMPS[spec.pace].last
    split: dict[str, Any] = {
        "candidate_per_s": rate * weight / 100,
        "stable_per_s": rate * (weight if spec.baseline else 100 - weight) / 100,
        "stable_rate": share,
    }
    healthy = time_to_verdict(guard, "Healthy", threshold=1 / judge.settings.beta, candidate_rate=share, **split)
    threshold = len(judge.settings.guards) / judge.settings.alpha
    found = time_to_verdict(guard, "Degraded", threshold=threshold, candidate_rate=2 * share, **split)
    allowed = guard.rho * share + guard.delta
    told = [f"at {rate:.3g} requests/s and {weight}%"]
    told.append(f"a version as good as the stable one is proven in about {span(healthy)}" if healthy else "")
    if 2 * share <= allowed:
        told.append(
            f"a doubling of errors ({share:.2%}) is within the {allowed:.2%} that is allowed; a smaller "
            "maxIncrease would tell it"
        )
    else:
        told.append(f"a doubling of errors ({share:.2%}) is found in about {span(found)}" if found else "")
    if healthy and healthy > seconds(spec.deadline):
        told.append("longer than rollout.deadline: a larger maxIncrease, or more traffic, would help")
    return "; ".join(part for part in told if part)


def evidence(rollout: RolloutStatus, spec: RolloutSpec, now: float) -> Evidence:
    """What follows from it all for the candidate's weight. `now` is in seconds since the epoch."""
    state = State.load(rollout.state)
    counting = state.counting
    deadline = timedelta(seconds=seconds(spec.deadline))
    if counting.requests is None or counting.rate is None:
        says = "counting has only just begun"
        return Evidence(doubt=rollout.doubt, counting=True, weight=rollout.weight, says=says, deadline=deadline)
    report = Judge(settings(spec), state.judge).report()
    proven = rollout.verdict == "Healthy" and all(g.healthy_here for g in report.guards)
    held = now - rollout.since.timestamp() if rollout.since else 0.0
    allowed = weights.allowed(
        rollout.weight,
        excess=report.excess,
        rate=counting.rate,
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
        short="" if allowed or spec.risk.beyond_budget else _short_of(counting.rate, spec),
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
        left = f", about {span(g.seconds_left)} to go" if g.seconds_left else ""
        told.append(f"{g.name}{counts} {g.verdict}{left}" + (f" ({g.why})" if g.why else ""))
    if report.incident:
        told.append("the stable version fails more than usual: nothing is promoted during an incident")
    return "; ".join(told)


def _short_of(rate: float, spec: RolloutSpec) -> str:
    """What to do where one percent of the traffic is too much to risk."""
    cost = math.ceil(2 * rate * weights.REACT * 0.01)
    return (
        f"1% of {rate:.0f} requests/s may cost {cost // 2} bad responses before a bad version can be noticed, more "
        f"than half of risk.badResponses ({spec.risk.bad_responses}); raise that to {cost}, or set risk.beyondBudget "
        "to begin at 1% all the same"
    )
