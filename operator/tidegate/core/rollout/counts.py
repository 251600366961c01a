"""Cumulative counts of each version as a source read them at one time, and the exact increments between two readings.

Every counter only grows, so that a reading that was missed loses nothing: the next one has it too. What breaks a
counter (a gateway's pod that comes or goes, a restart, probes that count as requests) changes the reading's `mark`;
the window across it is dropped for all versions alike, which favours none of them.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Generic, Self, TypeVar


@dataclass(frozen=True)
class Requests:
    """Responses of one version that users have seen, since its counters began."""

    requests: int = 0
    """All of them."""
    errors: int = 0
    """Those with a 5xx status, a reset or a time-out."""
    latency: Mapping[float, int] = field(default_factory=dict)
    """Responses that took at most so many milliseconds, by that edge, the last of which is infinite. Empty: unknown."""

    def nothing(self) -> Self:
        """Counters of the same kind that have counted nothing yet."""
        return type(self)(latency=dict.fromkeys(self.latency, 0))

    def since(self, before: Self) -> Self | None:
        """What came after `before`; None if a counter fell or another set of edges came.

        Where either does not know its latency, that of what came in between is not known.
        """
        known = bool(self.latency and before.latency)
        if known and self.latency.keys() != before.latency.keys():
            return None
        latency = {edge: count - before.latency[edge] for edge, count in self.latency.items()} if known else {}
        new = type(self)(self.requests - before.requests, self.errors - before.errors, latency)
        return None if min(new.requests, new.errors, *latency.values()) < 0 else new


@dataclass(frozen=True)
class Rewards:
    """Rewards in [0, 1] that users have given to responses of one version, since its counters began."""

    count: int = 0
    total: float = 0.0
    """Sum of the rewards."""
    squares: float = 0.0
    """Sum of their squares."""

    def nothing(self) -> Self:
        """Counters that have counted nothing yet."""
        return type(self)()

    def since(self, before: Self) -> Self | None:
        """What came after `before`; None if a counter fell."""
        new = type(self)(self.count - before.count, self.total - before.total, self.squares - before.squares)
        # sums of floating numbers may fall by a rounding error where nothing was added
        return None if new.count < 0 or min(new.total, new.squares) < -1e-9 else new


Count = TypeVar("Count", Requests, Rewards)


@dataclass(frozen=True)
class Reading(Generic[Count]):
    """What one source knew of every version at one time."""

    t: float
    """When it was read, in seconds since the epoch."""
    versions: Mapping[str, Count] = field(default_factory=dict)
    """By version. One that is not there has had no request yet."""
    mark: str = ""
    """Which set of counters this is: readings of different marks cannot be subtracted."""
    trouble: str = ""
    """Why this is not a whole reading; then nothing can be said, which is not the same as no requests."""
    passing: bool = False
    """Whether that comes with every change of a Route or of the gateway's pods, and goes by itself in a moment."""

    def since(self, before: Reading[Count]) -> dict[str, Count] | None:
        """Exact increments by version; None if the window has to be dropped, for all versions."""
        if self.trouble or before.trouble or self.mark != before.mark or self.t <= before.t:
            return None
        if before.versions.keys() - self.versions.keys():
            return None
        out: dict[str, Count] = {}
        for version, now in self.versions.items():
            # a version without a counter before had zero of everything, at the same edges
            new = now.since(before.versions.get(version, now.nothing()))
            if new is None:
                return None
            out[version] = new
        return out


@dataclass(frozen=True)
class Ask:
    """What is to be counted for one ModelDeployment while it is judged."""

    namespace: str
    deployment: str
    versions: Mapping[str, str]
    """Knative Revision of each version that is compared, by version."""
    rewards: bool = False
    """Whether rewards are asked for."""
    queries: Mapping[str, str] = field(default_factory=dict)
    """PromQL of guardrails that bring their own, by the guardrail's name."""


@dataclass(frozen=True)
class Sample:
    """Everything that the sources knew of one rollout or experiment at one time."""

    t: float
    """When, in seconds since the epoch."""
    requests: Reading[Requests]
    rewards: Reading[Rewards] | None = None
    """From the feedback service; None if no guardrail or goal asks for rewards."""
    values: Mapping[str, float] = field(default_factory=dict)
    """Values of the guardrails' own queries, by the guardrail's name. One that is not there has no value now."""
    troubles: Mapping[str, str] = field(default_factory=dict)
    """Why a guardrail's query has no value, by the guardrail's name."""
    asked: Ask | None = None
    """What it is an answer to, where that may have changed since."""

    def answers(self, versions: Collection[str], *, rewards: bool) -> bool:
        """Whether it is about just those versions, and has rewards if they are asked for."""
        return self.asked is None or (self.asked.versions.keys() == set(versions) and self.asked.rewards == rewards)
