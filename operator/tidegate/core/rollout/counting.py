"""What has been counted so far, as a rollout or an experiment remembers it from one sample to the next."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

from tidegate.core.rollout.counts import Count, Reading, Requests, Rewards, Sample
from tidegate.core.rollout.latency import edge_read, edge_written
from tidegate.core.rollout.weights import RATE_HALF_LIFE

IDLE = 60.0
"""Seconds after which a reading without a single new request is written down all the same."""
BACK = 1.0
"""Seconds by which a sample is older than the last one if the clock was set back, or another one's clock is behind."""
PASSING = 60.0
"""Seconds that a trouble may last which every change of a Route brings with it."""
NONE = 0.01
"""Requests per second that are as good as none: there is no more news in their absence."""


@dataclass(frozen=True)
class Window:
    """What came between two samples, in the order of the versions that were asked about."""

    seconds: float
    """How long it was; 0 if there is nothing to be said of it."""
    requests: tuple[Requests, ...] | None
    """None for a window that is dropped."""
    rewards: tuple[Rewards, ...] | None
    """The same; also None if nobody asked for rewards."""


@dataclass
class Counting:
    """The last whole readings, and the rate at which requests have come of late."""

    requests: Reading[Requests] | None = None
    rewards: Reading[Rewards] | None = None
    responses: float = 0.0
    """Recent requests of all versions, and"""
    over: float = 0.0
    """the seconds that they came in, both fading with age."""
    t: float = 0.0
    """When the last sample that was taken in was read."""
    said: str = ""
    """Why that one could not be relied on; empty if it could."""

    @property
    def rate(self) -> float | None:
        """Requests per second of late; None if nothing has been counted yet."""
        return self.responses / self.over if self.over else None

    def doubt(self, sample: Sample, *, rewards: bool) -> str:
        """Why a sample cannot be relied on; empty if it can, or if that goes by itself and has not lasted long.

        `rewards`: they are asked for.
        """
        if sample.requests.trouble:
            since = self.requests.t if self.requests else self.t or sample.t
            return "" if sample.requests.passing and sample.t - since < PASSING else sample.requests.trouble
        if rewards and sample.rewards is None:
            return "rewards are asked for, and there is no source of them"
        return sample.rewards.trouble if rewards and sample.rewards else ""

    def take(self, sample: Sample, versions: Collection[str], said: str = "") -> Window:
        """Takes in a sample; what is new in it for those versions. `said` is why it cannot be relied on."""
        requests, took = _between(self.requests, sample.requests, versions)
        rewards, took_too = _between(self.rewards, sample.rewards, versions) if sample.rewards else (None, 0.0)
        if requests:
            fade = 0.5 ** (took / RATE_HALF_LIFE)
            self.responses = self.responses * fade + sum(counts.requests for counts in requests)
            self.over = self.over * fade + took
        if not sample.requests.trouble:
            self.requests = sample.requests
        if sample.rewards and not sample.rewards.trouble:
            self.rewards = sample.rewards
        self.t, self.said = sample.t, said
        return Window(took or took_too, requests, rewards)

    def news(self, sample: Sample, *, said: str, waiting: bool, paused: bool, changed: bool) -> bool:
        """Whether a sample is worth writing down: an idle model's status is not rewritten every few seconds.

        `said` is why it cannot be relied on; `waiting`: no new version gets requests yet; `changed`: there is news
        besides the counts.
        """
        if sample.t <= self.t:
            return self.t - sample.t > BACK
        if sample.requests.trouble:
            return said != self.said or not self.t
        due = sample.t - self.t >= IDLE and self.rate is not None and self.rate > NONE
        if waiting and self.rate is not None and said == self.said:
            # a candidate without requests may wait for days, for a pod or for a person: what is usual is known by then
            return due and not paused and not said
        return self.rate is None or changed or said != self.said or due or self._differs(sample)

    def _differs(self, sample: Sample) -> bool:
        """Whether a sample shows anything that the last whole readings do not."""
        now, before = sample.requests, self.requests
        if before is None or (now.mark, now.versions) != (before.mark, before.versions):
            return True
        if sample.rewards is None or sample.rewards.trouble:
            return False
        return self.rewards is None or sample.rewards.versions != self.rewards.versions

    def dump(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "requests": written(self.requests) if self.requests else None,
            "rewards": written(self.rewards) if self.rewards else None,
            "rate": [round(self.responses, 4), round(self.over, 4)],
            "t": self.t,
            "said": self.said,
        }

    @classmethod
    def load(cls, raw: Mapping[str, Any]) -> Counting:
        """From what `dump` wrote, or from nothing."""
        responses, over = raw.get("rate", (0.0, 0.0))
        return cls(
            requests=requests_read(raw["requests"]) if raw.get("requests") else None,
            rewards=rewards_read(raw["rewards"]) if raw.get("rewards") else None,
            responses=responses,
            over=over,
            t=raw.get("t", 0.0),
            said=raw.get("said", ""),
        )


def compact(state: Mapping[str, Any]) -> str:
    """A state as JSON, without what is empty."""
    return json.dumps({key: value for key, value in state.items() if value}, separators=(",", ":"))


def _between(
    before: Reading[Count] | None, after: Reading[Count], versions: Collection[str]
) -> tuple[tuple[Count, ...] | None, float]:
    """Increments of the versions since the last whole reading, and the seconds between; None for a dropped window."""
    new = after.since(before) if before else None
    if before is None or not new:
        return None, 0.0
    any_of_them = next(iter(new.values()))
    return tuple(new.get(version, any_of_them.nothing()) for version in versions), after.t - before.t


def written(reading: Reading[Requests] | Reading[Rewards]) -> dict[str, Any]:
    """A reading for JSON."""
    versions: dict[str, list[Any]] = {}
    for version, counts in reading.versions.items():
        if isinstance(counts, Requests):
            edges = [[edge_written(edge), n] for edge, n in counts.latency.items()]
            versions[version] = [counts.requests, counts.errors, edges]
        else:
            versions[version] = [counts.count, counts.total, counts.squares]
    whole = {"t": reading.t, "mark": reading.mark, "versions": versions}
    return whole | {"trouble": reading.trouble, "passing": reading.passing} if reading.trouble else whole


def requests_read(raw: Mapping[str, Any]) -> Reading[Requests]:
    """A reading from what `written` gave."""
    versions = {
        version: Requests(requests, errors, {edge_read(edge): n for edge, n in latency})
        for version, (requests, errors, latency) in raw["versions"].items()
    }
    return Reading(raw["t"], versions, raw["mark"], raw.get("trouble", ""), raw.get("passing", False))


def rewards_read(raw: Mapping[str, Any]) -> Reading[Rewards]:
    """The same of rewards."""
    versions = {version: Rewards(*values) for version, values in raw["versions"].items()}
    return Reading(raw["t"], versions, raw["mark"], raw.get("trouble", ""), raw.get("passing", False))
