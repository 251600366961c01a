"""Several versions side by side: A/B/n tests and bandits."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Literal

from pydantic import Field

from tidegate.api.base import Duration, Type, keyed, rules
from tidegate.api.evidence import GuardrailName, GuardrailStatuses, Measured, Verdict
from tidegate.api.template import Model

Out = Literal["Worse", "Degraded", "Failed", "Aborted", "DeadlineExceeded"]
CONTROL = "control"
"""What the stable version is called among the arms of an experiment."""


class Challenger(Type):
    """A version beside that of spec.model. All but its model is as the spec says."""

    name: Annotated[GuardrailName, Field(description="What it is called in the status.")]
    model: Annotated[Model, Field(description="Its model.")]
    weight: Annotated[
        int | None,
        Field(
            description="ABTest: percent of requests. Those without, and spec.model, share evenly what is left.",
            ge=1,
            le=99,
        ),
    ] = None


class Bandit(Type):
    """How the weights of strategy Bandit follow the goal."""

    floor: Annotated[int, Field(description="Percent of requests that every version keeps.", ge=1, le=16)] = 5
    max_change: Annotated[
        int, Field(description="Percentage points by which a weight changes at most at a time.", ge=1, le=100)
    ] = 10
    every: Annotated[Duration, Field(description="Time between two changes, 10s to 24h.")] = "1m"
    half_life: Annotated[
        Duration,
        Field(
            description="Age at which an outcome counts half, 1m to 720h: what was best once need not be so now. "
            "Shorter follows a change sooner, and is less sure of what it follows."
        ),
    ] = "24h"

    model_config = {
        "json_schema_extra": rules(
            (
                "!has(self.every) || (duration(self.every) >= duration('10s') && "
                "duration(self.every) <= duration('24h'))",
                "bandit.every: 10s to 24h",
            ),
            (
                "!has(self.halfLife) || (duration(self.halfLife) >= duration('1m') && "
                "duration(self.halfLife) <= duration('720h'))",
                "bandit.halfLife: 1m to 720h",
            ),
        )
    }


class ArmStatus(Type):
    """One version of an experiment."""

    name: Annotated[str, Field(description="The challenger's name; control for the stable version.")]
    version: Annotated[str, Field(description="Its version.")]
    weight: Annotated[int, Field(description="Percent of requests that it should have now.")] = 0
    out: Annotated[
        Out | None,
        Field(
            description="Why it gets no more requests. Worse: proven worse than another by the goal. Degraded: proven "
            "worse than a guardrail allows. Failed: its pods do. Nothing while it is in."
        ),
    ] = None
    why: Annotated[str, Field(description="That, in words.", max_length=1024)] = ""
    goal: Annotated[Measured, Field(description="What was counted for the goal.")] = Measured()
    worse: Annotated[
        float | None,
        Field(description="Logarithm of the largest e-value that it is worse than another one, by the goal."),
    ] = None
    worse_at: Annotated[float | None, Field(description="Its limit.")] = None
    worse_than: Annotated[str | None, Field(description="The one that it is proven worse than, by the goal.")] = None
    best: Annotated[
        float | None, Field(description="Bandit: chance that it is the best, as the weights take it to be.")
    ] = None
    verdict: Annotated[
        Verdict | None, Field(description="What the guardrails say of it, against the stable version.")
    ] = None
    proven: Annotated[
        bool,
        Field(
            description="Whether its guardrails are Healthy at the present weights, and control is in no incident. "
            "Only then a winner is promoted by itself."
        ),
    ] = False
    guardrails: GuardrailStatuses = []


class ExperimentStatus(Type):
    """An A/B/n test or a bandit on its way. All that it needs to go on after a restart."""

    id: Annotated[str, Field(description="Digest of its versions and its goal. Another begins when they change.")]
    arms: Annotated[
        list[ArmStatus],
        Field(
            description="Its versions, the stable one first.",
            max_length=6,
            json_schema_extra=keyed("name"),
        ),
    ]
    stable_replicas: Annotated[
        int, Field(description="Replicas of the stable version before it shared its requests.")
    ] = 0
    began: Annotated[datetime | None, Field(description="When the versions were given their first requests.")] = None
    changed: Annotated[datetime | None, Field(description="When the weights last changed.")] = None
    winner: Annotated[str | None, Field(description="Name of the version that is proven best, or is left over.")] = None
    rate: Annotated[float | None, Field(description="Requests per second of all versions, over the last minute.")] = (
        None
    )
    doubt: Annotated[
        str, Field(description="Why the counts cannot be relied on now. Nothing is decided meanwhile.", max_length=1024)
    ] = ""
    cold_starts: Annotated[
        int, Field(description="Times that a version had no replica ready while they were compared.")
    ] = 0
    state: Annotated[
        str, Field(description="The evidence in full, as JSON. For Tidegate's own use.", max_length=131072)
    ] = ""

    @property
    def control(self) -> ArmStatus:
        """The stable version's."""
        return self.arms[0]

    @property
    def alive(self) -> list[ArmStatus]:
        """Those that may still be the best."""
        return [arm for arm in self.arms if arm.out is None and arm.worse_than is None]

    @property
    def challengers(self) -> list[ArmStatus]:
        """All others that are still in."""
        return [arm for arm in self.arms[1:] if arm.out is None]
