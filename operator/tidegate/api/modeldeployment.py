"""The ModelDeployment: one model, served under one name and URL, whatever version it is at."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any, Literal

from pydantic import Field

from tidegate.api.base import Duration, Type, keyed, rules
from tidegate.api.conditions import Condition
from tidegate.api.evidence import GuardrailStatuses, Verdict
from tidegate.api.experiment import Challenger, ExperimentStatus
from tidegate.api.rollout import RolloutSpec, RolloutStatus
from tidegate.api.template import TEMPLATE_RULES, Template

REQUEST_ANNOTATION = "tidegate.dev/request"
"""Annotation that asks for one action: `<verb> [<version>] [#<anything>]`; see docs/concepts.md."""


class Scaling(Type):
    """How many replicas a version with traffic has. A version without traffic has none."""

    min: Annotated[
        int,
        Field(description="Replicas kept while the version has traffic to expect. 0 scales to zero.", ge=0, le=1000),
    ] = 0
    max: Annotated[int, Field(description="Replicas at most.", ge=1, le=1000)] = 5
    metric: Annotated[
        Literal["concurrency", "rps"],
        Field(description="What is measured: requests in flight, or requests per second, for each replica."),
    ] = "concurrency"
    target: Annotated[
        int,
        Field(
            description="Value of the metric that one replica should carry. Knative adds replicas at 70% of it.",
            ge=1,
            le=1000000,
        ),
    ] = 10
    window: Annotated[Duration, Field(description="Time over which the metric is averaged, 6s to 1h.")] = "60s"
    idle: Annotated[
        Duration, Field(description="How long the last replica is kept once there is no more traffic, 0s to 1h.")
    ] = "30s"
    initial: Annotated[
        int,
        Field(description="Replicas that a version must have ready before it gets its first traffic.", ge=1, le=1000),
    ] = 1

    model_config = {
        "json_schema_extra": rules(
            ("self.min <= self.max", "scaling.min must not be above scaling.max"),
            ("self.initial <= self.max", "scaling.initial must not be above scaling.max"),
            (
                "duration(self.window) >= duration('6s') && duration(self.window) <= duration('1h')",
                "scaling.window: 6s to 1h",
            ),
            ("duration(self.idle) <= duration('1h')", "scaling.idle: 0s to 1h"),
        )
    }


class ModelDeploymentSpec(Template):
    """What should be served, and how it gets there."""

    visibility: Annotated[
        Literal["Public", "ClusterLocal"],
        Field(description="Public: through the gateway. ClusterLocal: inside the cluster only."),
    ] = "Public"
    scaling: Annotated[
        Scaling, Field(description="Replicas of a version with traffic. A change makes no new version.")
    ] = Scaling()
    rollout: Annotated[RolloutSpec, Field(description="How traffic moves to a new version.")] = RolloutSpec()
    challengers: Annotated[
        list[Challenger],
        Field(
            description="Versions beside that of model, for the strategies ABTest and Bandit.",
            max_length=5,
            json_schema_extra=keyed("name"),
        ),
    ] = []

    model_config = {
        "json_schema_extra": rules(
            *TEMPLATE_RULES,
            (
                "(self.rollout.strategy in ['ABTest', 'Bandit']) == (has(self.challengers) && "
                "size(self.challengers) > 0)",
                "challengers go with rollout.strategy ABTest or Bandit, which need at least one",
            ),
            (
                "!has(self.challengers) || self.challengers.all(c, c.name != 'control')",
                "control is what the version of spec.model is called; give the challenger another name",
            ),
            (
                "!has(self.challengers) || self.challengers.map(c, has(c.weight) ? c.weight : 1).sum() <= 99",
                "the weights of the challengers must leave at least 1% for spec.model and each that has none",
            ),
            (
                "!has(self.challengers) || self.rollout.strategy == 'ABTest' || "
                "self.challengers.all(c, !has(c.weight))",
                "the weights of strategy Bandit follow the goal: leave out those of the challengers",
            ),
            (
                "!has(self.challengers) || !has(self.backend) || self.backend != 'Knative' || "
                "self.challengers.all(c, has(c.model.container))",
                "the Knative backend runs images: give every challenger a model.container",
            ),
            (
                "!has(self.challengers) || self.challengers.all(c, !has(c.model.transformer) || "
                "(has(self.backend) ? self.backend == 'KServe' : has(c.model.uri)))",
                "a challenger's transformer needs the KServe backend: set backend: KServe",
            ),
        )
    }

    @property
    def template(self) -> Template:
        """The part of the spec that makes a version."""
        return Template.model_validate({name: getattr(self, name) for name in Template.model_fields})

    @property
    def experiments(self) -> bool:
        """Whether several versions are to be compared."""
        return self.rollout.strategy in ("ABTest", "Bandit")

    def template_of(self, challenger: Challenger) -> Template:
        """What makes a challenger's version: the spec's template with its model."""
        return self.template.model_copy(update={"model": challenger.model})


Role = Literal["Stable", "Candidate", "Baseline", "Challenger", "Kept"]


class VersionStatus(Type):
    """One version that is being kept: with traffic, on its way to it, or for an undo."""

    id: Annotated[str, Field(description="The version's name as a slug, and eight digits of its hash.")]
    name: Annotated[str, Field(description="Your name for it: model.version.")]
    role: Annotated[Role, Field(description="What it is here for.")]
    weight: Annotated[int, Field(description="Percent of requests that the Route sends to it now.")] = 0
    revision: Annotated[str | None, Field(description="The Knative Revision it is pinned to.")] = None
    url: Annotated[str | None, Field(description="URL that reaches this version alone.")] = None


class Rejected(Type):
    """The version of the spec that is not tried again, and why."""

    id: Annotated[str, Field(description="The version.")]
    reason: Annotated[str, Field(description="Why, in one CamelCase word.")]
    message: Annotated[str, Field(description="Why, and what to do about it.", max_length=4096)]
    at: Annotated[datetime, Field(description="When.")]
    verdict: Annotated[Verdict | None, Field(description="What the evidence said of it at the end.")] = None
    guardrails: GuardrailStatuses = []


class Pinned(Type):
    """Traffic goes to another version than spec.model asks for: by an undo, or since it won an A/B test."""

    to: Annotated[str, Field(description="Version that has, or is to get, the traffic.")]
    over: Annotated[str, Field(description="Version of the spec that it stands in for.")]
    won: Annotated[bool, Field(description="Whether it is here since it won an A/B test.")] = False


class RequestStatus(Type):
    """What became of the last request made through the annotation tidegate.dev/request."""

    value: Annotated[str, Field(description="The annotation's value.", max_length=512)]
    accepted: Annotated[bool, Field(description="Whether it could be done.")]
    message: Annotated[str, Field(description="What was done, or why not.", max_length=1024)]
    at: Annotated[datetime, Field(description="When.")]


class ModelDeploymentStatus(Type):
    """What is."""

    observed_generation: Annotated[int, Field(description="The generation of the spec that this speaks of.")] = 0
    url: Annotated[str | None, Field(description="Where the model answers.")] = None
    stable: Annotated[str | None, Field(description="Version with the traffic.")] = None
    candidate: Annotated[str | None, Field(description="Version on its way to the traffic.")] = None
    weight: Annotated[int | None, Field(description="Percent of requests that the candidate has.")] = None
    verdict: Annotated[
        Verdict | None, Field(description="What the evidence says of the candidate, or said of the one given up.")
    ] = None
    kept: Annotated[
        list[str],
        Field(
            description="Earlier stable versions, the latest first, kept at zero replicas for an undo.", max_length=20
        ),
    ] = []
    versions: Annotated[
        list[VersionStatus],
        Field(
            description="Versions that are being kept.",
            max_length=32,
            json_schema_extra=keyed("id"),
        ),
    ] = []
    rollout: Annotated[RolloutStatus | None, Field(description="The rollout on its way.")] = None
    experiment: Annotated[
        ExperimentStatus | None, Field(description="The A/B/n test or bandit on its way, or its outcome.")
    ] = None
    rejected: Annotated[Rejected | None, Field(description="The version of the spec that was given up.")] = None
    pinned: Annotated[Pinned | None, Field(description="The undo, or the winner, in force.")] = None
    request: Annotated[RequestStatus | None, Field(description="What became of the last request.")] = None
    acted: Annotated[
        list[str],
        Field(description="Digests of the last requests: none is acted on again if it comes back.", max_length=10),
    ] = []
    conditions: Annotated[
        list[Condition],
        Field(
            description="Ready, Servable, Progressing, VersionsReady.",
            max_length=16,
            json_schema_extra=keyed("type"),
        ),
    ] = []

    def condition(self, kind: str) -> Condition | None:
        """The condition of that type, if it is there."""
        return next((condition for condition in self.conditions if condition.type == kind), None)


class ModelDeployment(Type):
    """A model served under one name and URL, and the way its traffic moves from version to version."""

    spec: Annotated[ModelDeploymentSpec, Field(description="What should be served, and how it gets there.")]
    status: Annotated[ModelDeploymentStatus, Field(description="What is.")] = ModelDeploymentStatus()

    model_config = {
        "json_schema_extra": rules(
            (
                "self.metadata.name.size() <= 36 && self.metadata.name.matches('^[a-z]([-a-z0-9]*[a-z0-9])?$')",
                "the name of a ModelDeployment is part of host names: lower-case letters, digits and dashes, "
                "a letter first, at most 36 characters",
            )
        )
    }


PRINTER_COLUMNS: tuple[dict[str, Any], ...] = (
    {"name": "Ready", "type": "string", "jsonPath": ".status.conditions[?(@.type=='Ready')].status"},
    {"name": "Stable", "type": "string", "jsonPath": ".status.stable"},
    {"name": "Candidate", "type": "string", "jsonPath": ".status.candidate"},
    {"name": "Weight", "type": "integer", "jsonPath": ".status.weight"},
    {"name": "Verdict", "type": "string", "jsonPath": ".status.verdict"},
    {"name": "URL", "type": "string", "jsonPath": ".status.url"},
    {"name": "Reason", "type": "string", "jsonPath": ".status.conditions[?(@.type=='Ready')].reason", "priority": 1},
    {"name": "Age", "type": "date", "jsonPath": ".metadata.creationTimestamp"},
)
