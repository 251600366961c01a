"""How traffic moves from the stable version to a new one, and how far it has come."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Literal

from pydantic import Field

from tidegate.api.base import Duration, Type, keyed, rules
from tidegate.api.evidence import Guardrail, GuardrailStatuses, Verdict
from tidegate.api.experiment import Bandit


class Pause(Type):
    """A wait in a rollout: for a time, or, without one, for approval."""

    for_: Annotated[
        Duration | None, Field(alias="for", description="How long. Without it, until `tidegate promote` approves.")
    ] = None

    model_config = {
        "json_schema_extra": rules(
            ("!has(self.__for__) || duration(self.__for__) <= duration('720h')", "pause.for: at most 720h (30 days)")
        )
    }


class Step(Type):
    """One step of a rollout: a weight, and what to wait for once it is in force."""

    weight: Annotated[
        int | None, Field(description="Percent of requests for the candidate. Without it, as before.", ge=0, le=100)
    ] = None
    pause: Annotated[Pause | None, Field(description="Wait after the weight is in force. Without it, go on.")] = None


class Risk(Type):
    """How often the verdicts may be wrong, over all looks and guardrails together, and what finding out may cost."""

    false_rollback: Annotated[
        float,
        Field(description="Probability of rolling back a version that does what is allowed.", ge=0.000001, le=0.5),
    ] = 0.01
    false_promotion: Annotated[
        float,
        Field(description="Probability of promoting a version that is worse than allowed.", ge=0.000001, le=0.5),
    ] = 0.05
    bad_responses: Annotated[
        int,
        Field(
            description="Bad responses that a rollout may cost until a bad version is found. Weights stay so low that "
            "half of it is not passed before Tidegate can react.",
            ge=1,
            le=1000000000,
        ),
    ] = 100
    beyond_budget: Annotated[
        bool,
        Field(
            description="Begin at 1% even where that much traffic may cost more bad responses than badResponses allows."
        ),
    ] = False


class RolloutSpec(Type):
    """How traffic moves from the stable version to a new one."""

    strategy: Annotated[
        Literal["Progressive", "BlueGreen", "Immediate", "ABTest", "Bandit"],
        Field(
            description="Progressive: as fast as the evidence allows, or in steps. BlueGreen: all at once, when the "
            "new version has as many replicas as the stable one, which stays warm for a time. Immediate: all at once, "
            "as soon as it is ready. ABTest: spec.challengers get fixed weights beside spec.model until one version "
            "is proven best. Bandit: their weights follow the goal. With the last two, a change of spec.model goes as "
            "with Progressive first."
        ),
    ] = "Progressive"
    steps: Annotated[
        list[Step],
        Field(
            description="Steps of the rollout. By default the evidence sets the pace of Progressive; BlueGreen moves "
            "everything and keeps the old version warm for 5 minutes.",
            max_length=32,
        ),
    ] = []
    guardrails: Annotated[
        list[Guardrail] | None,
        Field(
            description="What a new version must not make worse. By default one, called errors. An empty list lets the "
            "steps alone decide.",
            max_length=8,
            json_schema_extra=keyed("name"),
        ),
    ] = None
    risk: Annotated[Risk, Field(description="How often a verdict may be wrong, and what finding out may cost.")] = (
        Risk()
    )
    baseline: Annotated[
        bool,
        Field(
            description="Compare the candidate with a fresh copy of the stable version that has as many requests, and "
            "not with the stable version itself: young pods with young pods, caches as cold on either side."
        ),
    ] = False
    assignment: Annotated[
        Literal["Request", "User"],
        Field(
            description="How a request gets its version. Request: the gateway draws each one. User: clients choose by "
            "user, with the version's own URL or header; then the shares of requests are not held against the weights."
        ),
    ] = "Request"
    pace: Annotated[
        Literal["Eager", "Steady"],
        Field(
            description="Where no steps are given. Eager: begins at the largest weight up to 10% that "
            "risk.badResponses allows, and rises as soon as the evidence does. Steady: begins at 1%, and holds each "
            "weight for a minute."
        ),
    ] = "Eager"
    deadline: Annotated[
        Duration, Field(description="How long to wait for evidence. Time alone never promotes. 1m to 720h.")
    ] = "6h"
    on_deadline: Annotated[
        Literal["Hold", "Rollback"],
        Field(description="After that: hold until `tidegate promote --full` or `abort`, or roll back."),
    ] = "Hold"
    goal: Annotated[
        str,
        Field(
            description="What ABTest and Bandit compare versions by. reward: the mean of what users report, of which "
            "more is better; or the name of a guardrail on errors or latency, whose bad responses are counted.",
            min_length=1,
            max_length=32,
        ),
    ] = "reward"
    promote_winner: Annotated[
        bool,
        Field(
            description="ABTest: give the winner all requests once its guardrails are Healthy. spec.model is left as "
            "it is, and status says so."
        ),
    ] = False
    bandit: Annotated[Bandit, Field(description="How the weights of strategy Bandit follow the goal.")] = Bandit()
    paused: Annotated[
        bool, Field(description="Hold the rollout where it is. Rolling back a failing candidate goes on.")
    ] = False
    keep_versions: Annotated[
        int, Field(description="Earlier stable versions kept at zero replicas, for an undo.", ge=0, le=20)
    ] = 3

    model_config = {
        "json_schema_extra": rules(
            (
                "!has(self.steps) || self.steps.filter(step, has(step.weight)).map(step, step.weight).isSorted()",
                "the weights of rollout.steps must not fall",
            ),
            (
                "self.strategy != 'Immediate' || !has(self.steps) || size(self.steps) == 0",
                "strategy Immediate has no steps",
            ),
            (
                "self.strategy != 'BlueGreen' || !has(self.steps) || "
                "self.steps.all(step, !has(step.weight) || step.weight == 0 || step.weight == 100)",
                "the weights of strategy BlueGreen are 0 and 100",
            ),
            (
                "self.strategy in ['BlueGreen', 'Immediate'] || !has(self.guardrails) || size(self.guardrails) > 0 || "
                "(has(self.steps) && size(self.steps) > 0)",
                "without guardrails nothing but steps can set the pace: give rollout.steps, or leave guardrails out",
            ),
            (
                "self.strategy in ['BlueGreen', 'Immediate'] || !has(self.steps) || size(self.steps) == 0 || "
                "(has(self.guardrails) && size(self.guardrails) == 0) || "
                "self.steps.exists(step, has(step.weight) && step.weight > 0 && step.weight < 100)",
                "guardrails compare a candidate with part of the traffic: give a step with a weight from 1 to 99, or "
                "guardrails: [] to do without",
            ),
            (
                "!has(self.baseline) || !self.baseline || (!(self.strategy in ['BlueGreen', 'Immediate']) && "
                "!(has(self.guardrails) && size(self.guardrails) == 0))",
                "guardrails compare with a baseline: it goes with Progressive, ABTest or Bandit, and with guardrails",
            ),
            (
                "!has(self.baseline) || !self.baseline || !has(self.steps) || "
                "self.steps.all(step, !has(step.weight) || step.weight <= 50 || step.weight == 100)",
                "the baseline has as many requests as the candidate: give steps with weights up to 50, and 100",
            ),
            (
                "!has(self.guardrails) || !self.guardrails.exists(g, has(g.latency)) || "
                "self.guardrails.exists(g, has(g.errors))",
                "a guardrail on latency needs one on errors beside it: failures can be fast",
            ),
            (
                "!has(self.deadline) || "
                "(duration(self.deadline) >= duration('1m') && duration(self.deadline) <= duration('720h'))",
                "rollout.deadline: 1m to 720h",
            ),
            (
                "!has(self.goal) || self.goal == 'reward' || "
                "(has(self.guardrails) && size(self.guardrails) > 0 "
                "? self.guardrails.exists(g, g.name == self.goal && "
                "(has(g.errors) || (has(g.latency) && has(g.latency.slowerThan)))) : self.goal == 'errors')",
                "rollout.goal: reward, or the name of a guardrail on errors, or on latency with slowerThan",
            ),
            (
                "self.strategy == 'ABTest' || !has(self.promoteWinner) || !self.promoteWinner",
                "promoteWinner goes with strategy ABTest: a bandit has no end",
            ),
        )
    }


class RolloutStatus(Type):
    """A rollout on its way. All that it needs to go on after a restart."""

    candidate: Annotated[str, Field(description="Version that the traffic moves to.")]
    stable: Annotated[str, Field(description="Version that the traffic moves from.")]
    baseline: Annotated[
        str | None, Field(description="Fresh copy of the stable version that the candidate is compared with.")
    ] = None
    without_baseline: Annotated[
        str,
        Field(description="Why it goes on without its baseline: that has failed since.", max_length=1024),
    ] = ""
    step: Annotated[int, Field(description="Step it is at, from 1; 0 while the candidate warms up.")] = 0
    weight: Annotated[int, Field(description="Percent of requests that the candidate should have now.")] = 0
    since: Annotated[datetime | None, Field(description="When the weight was seen in force at the gateway.")] = None
    stable_replicas: Annotated[
        int, Field(description="Replicas of the stable version when the rollout began; kept until it is promoted.")
    ] = 0
    exposed: Annotated[datetime | None, Field(description="When the candidate was given its first requests.")] = None
    waiting: Annotated[datetime | None, Field(description="Since when it waits for evidence.")] = None
    plan: Annotated[
        str, Field(description="Digest of the steps. When they change, what was approved has to be approved anew.")
    ] = ""
    approved: Annotated[int, Field(description="Pauses up to this step are approved.")] = 0
    promote: Annotated[bool, Field(description="Someone asked to skip the remaining steps.")] = False
    verdict: Annotated[
        Verdict | None, Field(description="What the evidence says of the candidate; nothing if it is not judged.")
    ] = None
    guardrails: GuardrailStatuses = []
    rate: Annotated[float | None, Field(description="Requests per second, of both versions, over the last minute.")] = (
        None
    )
    doubt: Annotated[
        str,
        Field(description="Why the counts cannot be relied on now. Nothing is promoted meanwhile.", max_length=1024),
    ] = ""
    forecast: Annotated[
        str,
        Field(description="How long a verdict will take, as far as could be said at the beginning.", max_length=1024),
    ] = ""
    cold_starts: Annotated[
        int,
        Field(description="Times that a version had no replica ready while it was judged. Latency is not held to it."),
    ] = 0
    state: Annotated[
        str, Field(description="The evidence in full, as JSON. For Tidegate's own use.", max_length=65536)
    ] = ""
