"""What is to be compared between two versions, and what the comparison says."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from tidegate.api.base import Duration, Type, keyed, rules

Percent = Annotated[str, Field(pattern=r"^[0-9]{1,3}(\.[0-9]{1,6})?%$", max_length=12)]
"""A share such as `5%` or `0.05%`."""

Ratio = Annotated[
    float,
    Field(description="Times the stable version's share. 0 makes maxIncrease an absolute limit.", ge=0, le=100),
]
Verdict = Literal["Healthy", "Degraded", "Undecided"]
GuardrailName = Annotated[str, Field(pattern=r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?$", max_length=32)]


def fraction(percent: str) -> float:
    """Value of a `Percent`: 0.05 for `5%`."""
    return float(percent.removesuffix("%")) / 100


def _above_nothing(field: str) -> tuple[str, str]:
    number = f"double(self.{field}.replace('%', ''))"
    return (
        f"!has(self.{field}) || ({number} > 0.0 && {number} <= 100.0)",
        f"{field}: above 0% and at most 100%. Without any room, no version could be proven healthy",
    )


class Errors(Type):
    """Responses with a 5xx status, resets and time-outs. Allowed: maxRatio times the stable share, plus maxIncrease."""

    max_ratio: Ratio = 1.5
    max_increase: Annotated[Percent, Field(description="Share of all responses that may fail besides.")] = "0.5%"

    model_config = {"json_schema_extra": rules(_above_nothing("maxIncrease"))}


class Latency(Type):
    """Responses that take too long. Allowed: maxRatio times the stable share, plus maxIncrease."""

    slower_than: Annotated[
        Duration | None,
        Field(
            description="From which time on a response is slow; the next edge of the gateway's histogram is taken. "
            "Without it, an edge that about 5% of the stable version's responses are slower than."
        ),
    ] = None
    max_ratio: Ratio = 1.25
    max_increase: Annotated[Percent, Field(description="Share of all responses that may be slow besides.")] = "1%"

    model_config = {"json_schema_extra": rules(_above_nothing("maxIncrease"))}


class Reward(Type):
    """Rewards in [0, 1] that users report to the feedback service."""

    min_delta: Annotated[
        float,
        Field(
            description="How far the mean may differ from the stable version's: -0.03 allows 0.03 less.", ge=-1, le=1
        ),
    ] = -0.03


class Query(Type):
    """A number that Prometheus knows, held against a limit. A plain threshold: it promises no rate of error.

    In the query, {namespace}, {deployment}, {candidate} and {stable} stand for the names of the namespace, of the
    ModelDeployment and of the Revisions.
    """

    promql: Annotated[str, Field(description="Query with one number as its result.", min_length=1, max_length=2048)]
    max: Annotated[float | None, Field(description="Degraded above it.", ge=-1e15, le=1e15)] = None
    min: Annotated[float | None, Field(description="Degraded below it.", ge=-1e15, le=1e15)] = None
    for_: Annotated[
        Duration, Field(alias="for", description="How long it has to be out of bounds, or within them, for a verdict.")
    ] = "1m"

    model_config = {
        "json_schema_extra": rules(
            ("has(self.max) || has(self.min)", "give max or min, or both"),
            ("!has(self.__for__) || duration(self.__for__) <= duration('24h')", "for: at most 24h"),
        )
    }


class Guardrail(Type):
    """One thing that a new version must not make worse. Exactly one of errors, latency, reward and query."""

    name: Annotated[GuardrailName, Field(description="What it is called in the status.")]
    errors: Annotated[Errors | None, Field(description="Share of failed responses.")] = None
    latency: Annotated[Latency | None, Field(description="Share of slow responses.")] = None
    reward: Annotated[Reward | None, Field(description="Mean of the rewards.")] = None
    query: Annotated[Query | None, Field(description="A query of your own.")] = None

    model_config = {
        "json_schema_extra": rules(
            (
                "[has(self.errors), has(self.latency), has(self.reward), has(self.query)].filter(x, x).size() == 1",
                "give exactly one of errors, latency, reward and query",
            )
        )
    }


class Measured(Type):
    """What one version did, as far as it was counted."""

    count: Annotated[int, Field(description="Responses, or rewards.")] = 0
    bad: Annotated[int | None, Field(description="Of these, the failed or slow ones.")] = None
    rate: Annotated[float | None, Field(description="Share of bad ones, or mean reward.")] = None


class GuardrailStatus(Type):
    """What the evidence says about one guardrail.

    E-values are how much more likely the counts are made by a version that is worse (or better) than allowed; one
    above its limit decides, however often it is looked at. They are written as decimal logarithms.
    """

    name: Annotated[str, Field(description="The guardrail.")]
    kind: Annotated[Literal["errors", "latency", "reward", "query"], Field(description="What it measures.")]
    verdict: Annotated[
        Verdict,
        Field(
            description="Degraded: proven worse than allowed. Healthy: proven to be allowed. Undecided: neither yet."
        ),
    ] = "Undecided"
    candidate: Annotated[Measured, Field(description="The candidate, over the whole rollout.")] = Measured()
    stable: Annotated[Measured, Field(description="The stable version, over the same time.")] = Measured()
    allowed: Annotated[float | None, Field(description="Rate of the candidate that would still be allowed.")] = None
    slower_than_ms: Annotated[float | None, Field(description="What counts as slow, in milliseconds.")] = None
    degraded: Annotated[float | None, Field(description="Logarithm of the e-value for Degraded.")] = None
    degraded_at: Annotated[float | None, Field(description="Its limit.")] = None
    healthy: Annotated[float | None, Field(description="Logarithm of the e-value for Healthy.")] = None
    healthy_at: Annotated[float | None, Field(description="Its limit.")] = None
    value: Annotated[float | None, Field(description="The query's last value.")] = None
    seconds_left: Annotated[
        int | None, Field(description="Seconds to a verdict at the present rate, if things stay as they look.")
    ] = None
    why: Annotated[str, Field(description="Why it is undecided, or what decided.", max_length=512)] = ""


GuardrailStatuses = Annotated[
    list[GuardrailStatus],
    Field(
        description="What the evidence says of each guardrail.",
        max_length=8,
        json_schema_extra=keyed("name"),
    ),
]
