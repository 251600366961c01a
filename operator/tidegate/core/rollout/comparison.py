"""What an experiment has found out about its versions: samples go in, evidence comes out, the status remembers it.

sample ── since the last ──► window ──► a judge for each challenger (guardrails, against control)
                                   └──► contest (the goal, every version against every other) and bandit
"""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace
from math import inf
from typing import Any

from tidegate.api.base import seconds
from tidegate.api.evidence import Guardrail, Measured
from tidegate.api.experiment import ArmStatus, ExperimentStatus
from tidegate.api.rollout import RolloutSpec
from tidegate.core.rollout.arms import ArmReport, Bandit, Contest, impossible, well
from tidegate.core.rollout.counting import Counting, Window, compact
from tidegate.core.rollout.counts import Requests, Rewards, Sample
from tidegate.core.rollout.guardrails import (
    bounds,
    bounds_read,
    guardrails,
    settings,
    short,
    statuses,
    turning,
    verdict,
    wants_rewards,
    wrong_split,
)
from tidegate.core.rollout.judge import Judge, Report, Settings


@dataclass
class State:
    """What has to be remembered from one sample to the next."""

    counting: Counting = field(default_factory=Counting)
    contest: dict[str, Any] | None = None
    bandit: dict[str, Any] | None = None
    judges: dict[str, dict[str, Any]] = field(default_factory=dict)
    """By challenger."""
    bounds: dict[str, dict[str, tuple[bool, float]]] = field(default_factory=dict)
    """Of the guardrails' queries, by challenger."""
    cold: bool = False

    def dump(self) -> str:
        """As JSON."""
        own = {
            "contest": self.contest,
            "bandit": self.bandit,
            "judges": self.judges,
            "bounds": {name: since for name, since in self.bounds.items() if since},
            "cold": self.cold,
        }
        return compact(self.counting.dump() | own)

    @classmethod
    def load(cls, text: str) -> State:
        """From JSON; a new state from an empty text."""
        raw = json.loads(text or "{}")
        return cls(
            counting=Counting.load(raw),
            contest=raw.get("contest"),
            bandit=raw.get("bandit"),
            judges=raw.get("judges", {}),
            bounds={name: bounds_read(told) for name, told in raw.get("bounds", {}).items()},
            cold=raw.get("cold", False),
        )


def query_name(challenger: str, guardrail: str) -> str:
    """Under which a sample has the value of a guardrail's query for one challenger; just the guardrail's for none."""
    return f"{challenger}/{guardrail}" if challenger else guardrail


def goal_of(spec: RolloutSpec) -> Guardrail | None:
    """The guardrail whose bad responses are counted for the goal; None if the goal is the reward."""
    return next((g for g in guardrails(spec) if g.name == spec.goal and spec.goal != "reward"), None)


def goal_mark(spec: RolloutSpec) -> str:
    """What the goal is, and what counts as slow where it is about that: with another one, other things are counted."""
    goal = goal_of(spec)
    return f"{spec.goal} {goal.latency.slower_than}" if goal and goal.latency else spec.goal


def reads_rewards(spec: RolloutSpec) -> bool:
    """Whether rewards have to be read: for the goal, or a guardrail."""
    return goal_of(spec) is None or wants_rewards(spec)


def observe(
    experiment: ExperimentStatus, spec: RolloutSpec, sample: Sample | None, *, in_force: bool, cold: bool
) -> ExperimentStatus:
    """The experiment with what a sample adds to it. One that was seen before adds nothing.

    `in_force`: the gateway splits the requests as the weights say. `cold`: a version that requests go to has no
    replica ready.
    """
    state = State.load(experiment.state)
    within = [arm.version for arm in (experiment.control, *experiment.challengers)]
    if sample is None or not sample.answers(within, rewards=reads_rewards(spec)):
        return experiment
    doubt, astray = state.counting.doubt(sample, rewards=reads_rewards(spec)), []
    if not _news(experiment, state, spec, sample, doubt, cold):
        return experiment
    window = state.counting.take(sample, [arm.version for arm in experiment.arms], doubt)
    arms = [experiment.control]
    for index, arm in enumerate(experiment.arms[1:], start=1):
        if arm.out is None:
            report = _judge(index, experiment, spec, state, window, in_force, cold)
            arm = _judged(arm, experiment, spec, state, sample, report)
            astray += [arm.name] if report.mismatch else []
        arms.append(arm)
    doubt = doubt or _uncounted(spec, sample)
    if astray:
        doubt = doubt or f"{wrong_split(', '.join(astray))}; `tidegate retry` begins anew once it is mended"

    contest, bandit = _contest(experiment, spec, state.contest), _bandit(experiment, spec, state.bandit)
    goal = _goal(spec, window)
    wrong = impossible(goal or ())
    doubt = doubt or wrong
    if experiment.began and goal and not wrong:
        new = dict(zip((arm.name for arm in arms), goal, strict=True))
        contest.observe(window.seconds, new)
        bandit.observe(window.seconds, new)
    state.contest, state.bandit = contest.dump(), bandit.dump()
    best = bandit.best([arm.name for arm in arms if arm.out]) if spec.strategy == "Bandit" else {}
    reports = {report.name: report for report in contest.report()}
    cold_starts = experiment.cold_starts + int(experiment.began is not None and cold and not state.cold)
    state.cold = cold
    return experiment.model_copy(
        update={
            "arms": [_compared(arm, reports[arm.name], spec, best.get(arm.name), contest.arms) for arm in arms],
            "state": state.dump(),
            "rate": short(state.counting.rate),
            "doubt": doubt[:1024],
            "cold_starts": cold_starts,
        }
    )


def _news(
    experiment: ExperimentStatus, state: State, spec: RolloutSpec, sample: Sample, doubt: str, cold: bool
) -> bool:
    """Whether a sample is worth writing down."""
    asked = [
        turning(spec, state.bounds.get(arm.name, {}), _own(sample, arm.name, spec), state.counting.t)
        for arm in experiment.challengers
        if experiment.began
    ]
    return state.counting.news(
        sample,
        said=doubt,
        waiting=experiment.began is None,
        paused=spec.paused,
        changed=cold != state.cold or any(asked),
    )


def _own(sample: Sample, challenger: str, spec: RolloutSpec) -> Sample:
    """A sample with the values of one challenger's queries."""
    names = {query_name(challenger, g.name): g.name for g in guardrails(spec) if g.query}
    return replace(
        sample,
        values={name: sample.values[key] for key, name in names.items() if key in sample.values},
        troubles={name: sample.troubles[key] for key, name in names.items() if key in sample.troubles},
    )


def _settings(experiment: ExperimentStatus, spec: RolloutSpec) -> Settings:
    """What each challenger is judged by: they share the chance of a false alarm, those that are out included."""
    return replace(settings(spec), canaries=len(experiment.arms) - 1)


def _judge(
    index: int,
    experiment: ExperimentStatus,
    spec: RolloutSpec,
    state: State,
    window: Window,
    in_force: bool,
    cold: bool,
) -> Report:
    """Holds a challenger against control by the guardrails, over one window."""
    arm, control = experiment.arms[index], experiment.control
    judge = Judge(_settings(experiment, spec), state.judges.get(arm.name))
    if experiment.began and (window.requests or window.rewards):
        judge.observe(
            window.seconds,
            (window.requests[0], window.requests[index]) if window.requests else None,
            (window.rewards[0], window.rewards[index]) if window.rewards else None,
            # of the requests to one of the two, those to the challenger are a binomial share
            weight=100 * arm.weight / (arm.weight + control.weight)
            if in_force and arm.weight and spec.assignment == "Request"
            else None,
            cold=cold or state.cold,
        )
    elif window.requests:
        judge.feed_stable(window.seconds, window.requests[0])
    state.judges[arm.name] = judge.dump()
    return judge.report()


def _judged(
    arm: ArmStatus, experiment: ExperimentStatus, spec: RolloutSpec, state: State, sample: Sample, report: Report
) -> ArmStatus:
    """A challenger, with what the guardrails say of it."""
    own = _own(sample, arm.name, spec)
    since = bounds(spec, own, state.bounds.get(arm.name, {})) if experiment.began else {}
    state.bounds[arm.name] = since
    rate = state.counting.rate
    rates = (rate * arm.weight / 100, rate * experiment.control.weight / 100) if rate else None
    found = statuses(spec, report, since, own, rates)
    said = verdict(found)
    proven = said == "Healthy" and all(g.healthy_here for g in report.guards) and not report.incident
    return arm.model_copy(update={"guardrails": found, "verdict": said, "proven": proven})


def _uncounted(spec: RolloutSpec, sample: Sample) -> str:
    """Why the goal cannot be counted; empty if it can."""
    goal = goal_of(spec)
    if goal is None or goal.latency is None:
        return ""
    known = next((requests for requests in sample.requests.versions.values() if requests.latency), None)
    if known is None or _edge(goal, known) is not None:
        return ""
    return f"no edge of {goal.latency.slower_than} or more is counted by; give the guardrail {goal.name} a lower one"


def _goal(spec: RolloutSpec, window: Window) -> list[Rewards] | None:
    """The outcomes of each version in a window; None if there is nothing to be said of it."""
    goal = goal_of(spec)
    if goal is None:
        return list(window.rewards) if window.rewards else None
    if not window.requests:
        return None
    if goal.errors:
        return [well(requests) for requests in window.requests]
    edges = [_edge(goal, requests) for requests in window.requests]
    if None in edges:
        return None
    return [well(requests, edge) for requests, edge in zip(window.requests, edges, strict=True)]


def _edge(goal: Guardrail, requests: Requests) -> float | None:
    """The edge of the histogram from which on a response is slow, in milliseconds."""
    if goal.latency is None or goal.latency.slower_than is None:
        return None
    least = seconds(goal.latency.slower_than) * 1000
    return next((edge for edge in sorted(requests.latency) if least <= edge < inf), None)


def _contest(experiment: ExperimentStatus, spec: RolloutSpec, known: Mapping[str, Any] | None) -> Contest:
    contest = Contest([arm.name for arm in experiment.arms], spec.risk.false_promotion, known)
    for arm in experiment.arms:
        if arm.out:  # also one that is worse: it does not come back where what it was worse than is stopped
            contest.stop(arm.name, arm.why)
    return contest


def _bandit(experiment: ExperimentStatus, spec: RolloutSpec, known: Mapping[str, Any] | None) -> Bandit:
    return Bandit(
        [arm.name for arm in experiment.arms],
        floor=spec.bandit.floor,
        most=spec.bandit.max_change,
        half_life=seconds(spec.bandit.half_life),
        state=known,
    )


def _compared(
    arm: ArmStatus, report: ArmReport, spec: RolloutSpec, best: float | None, names: Collection[str]
) -> ArmStatus:
    """An arm with what the contest, and perhaps the bandit, say of it."""
    mean, bad = report.mean, None
    if goal_of(spec) and mean is not None:  # counted as what went well, told as what did not
        mean = 1.0 - mean
        bad = round(mean * report.count)
    return arm.model_copy(
        update={
            "goal": Measured(count=report.count, bad=bad, rate=short(mean)),
            "worse": None if report.out else short(report.evidence),
            "worse_at": short(report.needed),
            "worse_than": report.out if report.out in names else None,
            "best": short(best),
        }
    )


def bandit_weights(experiment: ExperimentStatus, spec: RolloutSpec, now: Mapping[str, int]) -> dict[str, int]:
    """Percent for each arm from now on, by the goal; `now` is what it is."""
    out = [arm.name for arm in experiment.arms if arm.out]
    return _bandit(experiment, spec, State.load(experiment.state).bandit).weights(now, out)


def counted(experiment: ExperimentStatus) -> bool:
    """Whether the counters have been read at all, so that what comes next can be told from what was."""
    return State.load(experiment.state).counting.requests is not None


def reweighted(experiment: ExperimentStatus, spec: RolloutSpec, *, anew: bool) -> ExperimentStatus:
    """The experiment after its weights were changed: no block is mixed. `anew`: each weight proves itself, too."""
    if not experiment.state:
        return experiment
    state = State.load(experiment.state)
    by = _settings(experiment, spec)
    for name, dumped in state.judges.items():
        judge = Judge(by, dumped)
        judge.weight_changed() if anew else judge.reweighted()
        state.judges[name] = judge.dump()
    if state.contest:
        contest = _contest(experiment, spec, state.contest)
        contest.weight_changed()
        state.contest = contest.dump()
    if anew:
        state.bounds = {}
    return experiment.model_copy(update={"state": state.dump()})
